"""Other trainers' names and files: answered with our key, the TOML they become, or "not built yet"."""

import json
import tomllib

import pytest

from rmcli.config import foreign
from rmcli.config.foreign_files import as_toml
from rmcli.config.keys import every_key
from rmcli.config.resolve import resolve
from rmcli.config.sections import SECTIONS
from rmcli.errors import ConfigError
from support.places import REPOSITORY

XTUNER = """
from torch.optim import AdamW
open('ran', 'w')
pretrained_model_name_or_path = 'internlm/internlm2-chat-1_8b-sft'
reward_token_id = 92527
loss_type = 'focal'
max_length = 2048
max_packed_length = max_length * 2
accumulative_counts = 16
accumulative_counts *= 2
dataloader_num_workers = 4
betas = (0.9, 0.999)
weight_decay = 0
lr = 1e-5
save_total_limit = -1
rope = unknown_call(1)
model = dict(type=RewardModel, penalty_weight=0.01, llm=dict(quantization_config=dict(load_in_4bit=True)))
train_dataset = dict(
    dataset=dict(type=load_dataset, path='org/pairs'), dataset_map_fn=orpo_dpo_mix_40k_map_fn, num_proc=8)
"""
TRL = """
model_name_or_path: Qwen/Qwen3-0.6B
dataset_name: org/pairs
learning_rate: 1e-5
per_device_train_batch_size: 8
gradient_accumulation_steps: 4
num_train_epochs: 1.0
gradient_checkpointing: true
optim: adamw_torch_fused
max_length: 32768
lr_scheduler_type: linear
max_steps: -1
seed: 7
lora_r: 32
mystery: [1, 2]
"""


def test_an_xtuner_config_becomes_toml_and_is_never_run(cli, tmp_path):
    (tmp_path / "config.py").write_text(XTUNER)
    result = cli("train", "-c", "config.py")
    assert result.code == 2
    assert not (tmp_path / "ran").exists()
    assert "error: --config config.py is no TOML: it was read as another trainer's settings" in result.stderr
    assert tomllib.loads(result.stdout) == {
        "model": {"pretrained_model_name_or_path": "internlm/internlm2-chat-1_8b-sft", "reward_token_id": 92527},
        "data": {
            "max_length": 2048,
            "max_packed_length": 4096,
            "dataset_map_fn": "orpo_dpo_mix_40k",
            "num_proc": 8,
            "sources": ["org/pairs"],
        },
        "loss": {"loss_type": "focal", "penalty_weight": 0.02},  # a sum over 2N divided by N: half of ours
        "train": {"accumulative_counts": 32, "betas": [0.9, 0.999], "weight_decay": 0.0, "lr": 1e-5},
    }
    assert "# dataloader_num_workers = 4: batches are built by one thread ahead" in result.stdout
    assert "# quantization_config = {'load_in_4bit': True}: model.quantization=nf4 is the one kind" in result.stdout
    (tmp_path / "config.toml").write_text(result.stdout)
    assert resolve(None, [tmp_path / "config.toml"]).config.train.accumulative_counts == 32


def test_a_trl_yaml_becomes_toml(cli, tmp_path):
    (tmp_path / "reward.yaml").write_text(TRL)
    result = cli("prepare", "-c", "reward.yaml")
    assert result.code == 2
    values = tomllib.loads(result.stdout)
    assert values["train"] == {
        "lr": 1e-5,
        "max_epochs": 1,
        "activation_checkpointing": "full",
        "optimizer": "adamw",
        "seed": 7,
        "pairs_per_step": 32,
    }
    assert values["data"] == {"sources": ["org/pairs"], "max_length": 32768, "max_packed_length": 32768}
    assert values["loss"] == {"loss_type": "ranking", "penalty_type": "none"}
    assert values["lora"] == {"r": 32}
    assert values["model"]["reward_token"] == "<|quad_end|>"  # the preset's
    for line in (
        "lr_scheduler_type = 'linear': only the cosine",
        "mystery = [1, 2]:",
    ):
        assert f"# {line}" in result.stdout
    (tmp_path / "reward.toml").write_text(result.stdout)
    resolve(None, [tmp_path / "reward.toml"])


def test_llama_factory_and_openrlhf_names_become_keys(tmp_path):
    (tmp_path / "lf.yml").write_text("cutoff_len: 512\nval_size: 0.1\nwarmup_ratio: 0.1\nnum_train_epochs: 2.5\n")
    text = as_toml(tmp_path / "lf.yml")
    assert tomllib.loads(text)["data"] == {"max_length": 512, "eval_fraction": 0.1}
    assert "# train.max_epochs = 2.5: Input should be a valid integer" in text
    (tmp_path / "or.json").write_text(json.dumps({"pretrain": "a/b", "max_len": 64, "l2": 0.1, "loss": "sigmoid"}))
    values = tomllib.loads(as_toml(tmp_path / "or.json"))
    assert values["train"] == {"weight_decay": 0.1}
    (tmp_path / "centered.yaml").write_text("center_rewards_coefficient: 0.01\nlearning_rate: 1e-5\n")
    centered = tomllib.loads(as_toml(tmp_path / "centered.yaml"))["loss"]
    assert centered == {"loss_type": "ranking", "penalty_type": "center", "penalty_weight": 0.01}
    assert values["loss"]["loss_type"] == "ranking"
    assert values["model"] == {"pretrained_model_name_or_path": "a/b", "reward_token": "natural"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "x = ("),
        ("a.py", "print(1)"),
        ("a.py", "x = " + "[" * 3000 + "]" * 3000),
        ("a.py", "lr = " + "-" * 500 + "1"),
        ("a.yaml", "- 1\n- 2"),
        ("a.yaml", "a: !!python/object/apply:os.system ['touch ran']"),
        ("a.yaml", "a: [1"),
        ("a.json", "[]"),
        ("a.json", "{"),
        ("a.yaml", "other: 1"),
        ("a.py", "\0"),
    ],
)
def test_what_holds_no_settings_is_one_line(cli, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    result = cli("train", "-c", name)
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {name} ")
    assert len(result.stderr.splitlines()) <= 2
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-s", "lr=2e-5"], "write -s train.lr=2e-5"),
        (["-s", "learning_rate=2e-5"], "write -s train.lr=2e-5"),
        (["-s", "train.learning_rate=1"], "did you mean train.lr?"),
        (["-s", "data.lr=1"], "did you mean train.lr?"),
        (["-s", "train.lora_r=8"], "did you mean lora.r?"),
        (
            ["-s", "report_to=wandb"],
            'train.trackers, such as train.trackers=["wandb"]; runs have the run folder\'s name (docs/trackers.md)',
        ),
        (["-s", "lora.rank=8"], "rmcli config lora lists the keys of [lora]"),
        (["-s", "train.bogus=1"], "rmcli config train lists the keys of [train]"),
        (["--lr", "1"], "it is train.lr: -s train.lr=VALUE, or lr under [train] of a TOML file"),
        (["--resume_from_checkpoint", "x"], "a run goes on with: rmcli train --resume -o RUN"),
        (
            ["-s", "load_best_model_at_end=true"],
            "train.best=eval_accuracy, eval_loss, ... exports the best evaluation's weights as model-best/",
        ),
        (["--lora-r", "8"], "it is lora.r: -s lora.r=VALUE, or r under [lora] of a TOML file"),
        (
            ["--nproc-per-node", "2"],
            "rmcli train --num-processes N; on several machines torchrun ... -m rmcli train (docs/launch.md)",
        ),
        (["--fsdp", "full_shard"], "weights are cut over processes by torch's FSDP2: parallel.data_parallel=shard"),
        (["--bf16"], "on CUDA arithmetic is bfloat16 by itself, with float32 weights, head and loss (model.dtype)"),
        (["--dataloader_num_workers=4"], "batches are built by one thread ahead: there is nothing to set"),
    ],
)
def test_names_typed_by_habit_are_answered(cli, arguments, hint):
    result = cli("train", *arguments)
    assert result.code == 2
    assert result.stderr.splitlines()[1] == f"hint: {hint}"
    assert len(result.stderr.splitlines()) == 2


def test_flat_toml_is_told_its_section(cli, tmp_path):
    (tmp_path / "flat.toml").write_text("loss_type = 'focal'\n")
    assert cli("train", "-c", "flat.toml").stderr == (
        "error: flat.toml: loss_type = 'focal' stands in no section\n"
        "hint: write it under [loss]: loss_type = 'focal'\n"
    )
    (tmp_path / "flat.toml").write_text("learning_rate = 1e-5\n")
    assert "hint: write it under [train]: lr = 1e-05" in cli("train", "-c", "flat.toml").stderr


def test_a_command_of_another_name_is_told(cli):
    result = cli("eval", "x")
    assert result.code == 2
    assert result.stderr.startswith("error: no command eval\nhint: rmcli evaluate MODEL PAIRS.jsonl\n")


def test_a_command_that_is_an_option_is_named(cli):
    hint = "hint: a run goes on with: rmcli train --resume -o RUN"
    assert cli("resume", "x").stderr.splitlines() == ["error: no command resume", hint]


def test_the_table_is_sound():
    """Each name leads to a key that there is, to one answer, and hides no key of ours."""
    keys = {key.name for key in every_key()}
    assert set(foreign.KEYS.values()) <= keys
    own = {key for section in SECTIONS.values() for key in section.model_fields}
    for table in (foreign.KEYS, foreign.NOT_BUILT, foreign.ANSWERS):
        assert not own & table.keys()
    assert not foreign.NOT_BUILT.keys() & foreign.ANSWERS.keys()
    assert not foreign.KEYS.keys() & (foreign.NOT_BUILT.keys() | foreign.ANSWERS.keys())


def test_the_page_names_what_the_table_names():
    page = (REPOSITORY / "docs" / "migrate.md").read_text()
    for name, key in foreign.KEYS.items():
        assert f"`{name}`" in page, name
        assert f"`{key}`" in page, key
    for name, answer in (*foreign.NOT_BUILT.items(), *foreign.ANSWERS.items()):
        assert any(f"`{name}`" in line and answer in line for line in page.splitlines()), name


def test_a_wrong_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        as_toml(tmp_path / "gone.py")
