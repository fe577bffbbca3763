"""A run of adapters: what it keeps, how it goes on, and that all it makes scores as it did."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nano_run import files, lines, make_model, of_model, settings
from rmcli.backbones.adapter_files import SETTINGS, WEIGHTS
from rmcli.config.resolve import resolve
from rmcli.ship.place import no_base_for_peft
from support.cli import run_cli
from support.places import REPOSITORY

KEYS = (
    "model.random_weights=false",
    "lora.r=8",
    "lora.lora_dropout=0.1",
    "train.pairs_per_step=16",
    "train.max_steps=12",
    "train.save_steps=6",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small model with weights of its own, as a hub has them."""
    folder = make_model(tmp_path_factory.mktemp("base") / "base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base, nano_data) -> Path:
    """A run to its end."""
    out = tmp_path_factory.mktemp("lora") / "run"
    result = train(base, nano_data, "-o", out)
    assert result.code == 0, result.stderr
    return out


def train(base: Path, data: Path, *more: object):
    return run_cli("train", "--data", data, *of_model(base), *settings(*KEYS), *more)


def golden(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]


def scored(folder: Path) -> list[float]:
    """The golden conversations of the run's model, as rmcli scores them."""
    rows = [
        {"prompt": line["messages"][:-1], "responses": [line["messages"][-1]["content"]]} for line in golden(folder)
    ]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_cli("score", folder, folder.parent / "rows.jsonl")
    assert result.code == 0, result.stderr
    return [json.loads(line)["scores"][0] for line in result.stdout.splitlines()]


def test_a_checkpoint_holds_adapters_head_and_row_and_nothing_of_the_base(whole, base):
    (file,) = (whole / "checkpoints" / "step-12").glob("*.safetensors")
    stored = load_file(file)
    weights = {name: tensor for name, tensor in stored.items() if name.startswith("model.")}
    assert len(weights) == 2 * 7 * 2 + 2
    numbers = sum(tensor.numel() for tensor in weights.values())
    assert not any("base_layer" in name for name in stored)
    assert file.stat().st_size < 3 * 4 * numbers + 40_000  # with the two states of AdamW, and names
    assert file.stat().st_size < (base / "model.safetensors").stat().st_size


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_the_merged_folder_and_the_adapters_beside_their_base_score_alike_everywhere(whole, base):
    lines = golden(whole / "model")
    expected = [line["score"] for line in lines]
    assert max(map(abs, expected)) > 0.01
    for folder in ("model", "adapter"):
        assert scored(whole / folder) == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(whole / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    network = PeftModel.from_pretrained(plain, whole / "adapter").eval()
    with torch.no_grad():
        found = [network(**tokenizer(line["text"], return_tensors="pt")).logits.item() for line in lines]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_verify_proves_both_folders_in_a_fresh_process(whole):
    for folder in ("model", "adapter"):
        result = run_cli("verify", whole / folder)
        assert result.code == 0, result.stderr
        assert "scored by transformers" in result.stdout


@pytest.mark.slow
def test_a_run_beside_4_bits_makes_both_folders_and_goes_on_bitwise(base, nano_data, tmp_path):
    packed = settings("model.quantization=nf4")
    result = train(base, nano_data, "-o", tmp_path / "run", *packed)
    assert result.code == 0, result.stderr
    expected = [line["score"] for line in golden(tmp_path / "run" / "model")]
    for folder in ("model", "adapter"):
        assert scored(tmp_path / "run" / folder) == pytest.approx(expected, abs=1e-4)
        verified = run_cli("verify", tmp_path / "run" / folder)
        assert verified.code == 0, verified.stderr
    before = files(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-12")
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-6\n")
    assert run_cli("train", "--resume", "-o", tmp_path / "run").code == 0
    assert files(tmp_path / "run" / "model") == before
    whole = run_cli("export", tmp_path / "run", "-o", tmp_path / "out", "--dtype", "bfloat16")
    assert "rounded to bfloat16: golden scores move by" in whole.stderr


@pytest.mark.slow
def test_two_processes_cut_the_base_and_go_on_bitwise(base, nano_data, tmp_path):
    line = (*of_model(base), *settings(*KEYS, "parallel.data_parallel=shard"), "--num-processes", "2")
    result = command("train", "--data", nano_data, *line, "-o", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    expected = [line["score"] for line in golden(tmp_path / "run" / "model")]
    assert scored(tmp_path / "run" / "adapter") == pytest.approx(expected, abs=1e-5)
    before = files(tmp_path / "run" / "adapter")
    for name in ("checkpoints/step-12", "model", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-6\n")
    again = command("train", "--resume", "-o", tmp_path / "run", "--num-processes", "2")
    assert again.returncode == 0, again.stderr
    assert files(tmp_path / "run" / "adapter") == before


def command(*line: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rmcli", *map(str, line)], capture_output=True, text=True, env=environment
    )


def test_a_run_goes_on_bitwise_as_if_nothing_had_been(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for name in ("checkpoints/step-12", "model", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-6\n")
    result = run_cli("train", "--resume", "-o", tmp_path / "run")
    assert result.code == 0, result.stderr
    assert "not bitwise" not in result.stderr
    assert lines(tmp_path / "run") == lines(whole)
    for folder in ("model", "adapter"):
        assert files(tmp_path / "run" / folder) == files(whole / folder)


def test_adapters_of_a_checkpoint_are_exported_alone(whole, tmp_path):
    result = run_cli("export", whole, "-o", tmp_path / "out", "--format", "peft")
    assert result.code == 0, result.stderr
    assert files(tmp_path / "out") == files(whole / "adapter")
    assert json.loads((tmp_path / "out" / SETTINGS).read_text())["modules_to_save"] == ["score"]


def test_another_base_under_the_same_name_is_refused(whole, base, tmp_path):
    weights = load_file(base / "model.safetensors")
    try:
        save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * 1.01}, base / "model.safetensors")
        result = run_cli("export", whole, "-o", tmp_path / "out")
    finally:
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert result.code == 1
    assert f"the weights of {base} are not those that {whole} began with" in result.stderr
    assert not (tmp_path / "out").exists()


def test_adapters_without_their_head_are_refused(whole, nano_data, tmp_path):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "rmcli.sha256").unlink()
    weights = load_file(tmp_path / "adapter" / WEIGHTS)
    for name, said in (
        ("base_model.model.score.weight", "has no score.weight: without its head no score is learned"),
        ("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight", "has no base_model.model.model.layers.1.mlp"),
    ):
        save_file({key: one for key, one in weights.items() if key != name}, tmp_path / "adapter" / WEIGHTS)
        result = run_cli("score", tmp_path / "adapter", nano_data / "eval.jsonl")
        assert result.code == 1
        assert said in result.stderr


def test_continuing_from_adapters_keeps_head_and_row(whole, nano_data, tmp_path):
    """The next run begins with the scores of the last one."""
    keys = settings("lora.r=1", "train.max_steps=1", "train.lr=1e-12", "train.warmup_ratio=0")
    result = train(whole / "adapter", nano_data, "-o", tmp_path / "run", *keys)
    assert result.code == 0, result.stderr
    assert "first loss" not in result.stderr  # which is said of a zero head
    assert scored(tmp_path / "run" / "model") == pytest.approx(
        [line["score"] for line in golden(whole / "model")], abs=1e-4
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (("train.master_weights=split", "model.dtype=bfloat16"), "train.master_weights = 'split' with lora.r"),
        (("model.quantization=nf4", "lora.r="), "model.quantization = 'nf4' without adapters"),
    ],
)
def test_what_does_not_go_together_is_refused(base, nano_data, tmp_path, keys, said):
    line = [key for key in (*KEYS, *keys) if not (key == "lora.r=8" and "lora.r=" in keys) and key != "lora.r="]
    result = run_cli("train", "--data", nano_data, *of_model(base), *settings(*line), "-o", tmp_path / "run")
    assert result.code == 2
    assert said in result.stderr


def test_adapters_are_found_beside_their_base_from_elsewhere(base, nano_data, tmp_path, monkeypatch):
    """Where the base was named by a path that holds in one folder only."""
    monkeypatch.chdir(base.parent)
    result = train(Path(base.name), nano_data, "-o", tmp_path / "run", *settings("train.max_steps=1"))
    assert result.code == 0, result.stderr
    monkeypatch.chdir(tmp_path)
    assert run_cli("export", "run", "-o", "out").code == 0
    assert scored(Path("run/adapter").absolute()) == pytest.approx(
        [line["score"] for line in golden(Path("out"))], abs=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_bias": True}, "lora_bias = True is not merged here"),
        ({"use_dora": True}, "use_dora = True is not merged here"),
        (
            {"trainable_token_indices": {"embed_tokens": [4]}},
            "trainable_token_indices = {'embed_tokens': [4]} is not",
        ),
        ({"peft_type": "IA3"}, "peft_type is IA3, not LORA"),
    ],
)
def test_adapters_of_another_kind_are_refused(whole, nano_data, tmp_path, changes, said):
    shutil.copytree(whole / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "rmcli.sha256").unlink()
    path = tmp_path / "adapter" / SETTINGS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    result = run_cli("score", tmp_path / "adapter", nano_data / "eval.jsonl")
    assert result.code == 1
    assert said in result.stderr


def test_a_base_that_nobody_has_for_peft_is_known_before_the_export(whole, base, tmp_path):
    section = resolve(
        "tiny", (), (f"model.pretrained_model_name_or_path={base}", "model.random_weights=false")
    ).config
    assert no_base_for_peft(section.model) is None
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"model_type": "internlm2", "bias": False}))
    for name, why in (
        (whole / "adapter", "is a folder of adapters itself"),
        (tmp_path / "model.gguf", "is a .gguf file"),
        (tmp_path / "own", "transformers has no classifier for their base model"),
    ):
        other = section.model.model_copy(update={"pretrained_model_name_or_path": str(name)})
        assert why in str(no_base_for_peft(other))
