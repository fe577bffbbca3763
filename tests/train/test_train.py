"""`rmcli train`: what it learns, what it writes, and what it refuses."""

import gc
import gzip
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmcli.config.resolve import resolve
from rmcli.config.sections import TrainSection
from rmcli.errors import RmcliError
from rmcli.model import optim
from rmcli.model.forward import scores
from rmcli.model.load import load_model
from rmcli.model.memory import estimate, sizes_of
from rmcli.model.network import score_head
from rmcli.model.recompute import checkpoint_activations
from rmcli.packs.manifest import read_manifest, write_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.rows import tasks
from rmcli.runs import checkpoint, state
from rmcli.tokens import tokenizer
from rmcli.train.feed import STEPS_AHEAD, ahead
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from rmcli.train.plan import plan
from support.cli import as_options
from support.networks import NoWaiting
from support.places import REPOSITORY, write_lines

GOLDEN = REPOSITORY / "tests" / "golden" / "tiny_losses.json"
TINY = ("--preset", "tiny")


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_lines(run: Path) -> list[dict]:
    return [line for line in metrics_of(run) if "loss" in line]


def trained(cli, data: Path, out: str, *settings: str, code: int = 0):
    options = as_options(*settings)
    result = cli("train", *TINY, "--data", data, "-o", out, *options)
    assert result.code == code, result.stderr
    return result


def test_twenty_golden_losses(cli, tiny_run):
    """Changes only with a reason. To write it anew: the losses of the run below, as tests/golden/README.md says."""
    trained(cli, tiny_run.data, "run", "train.max_steps=20", "train.log_every=1")
    losses = [line["loss"] for line in train_lines(Path("run"))]
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


@pytest.mark.parametrize("loss_type", ["focal", "ranking"])
def test_the_first_loss_of_a_new_model_is_analytic(cli, tiny_run, loss_type):
    trained(cli, tiny_run.data, "run", "train.max_steps=1", f"loss.loss_type={loss_type}")
    (line,) = train_lines(Path("run"))
    assert line["loss"] == pytest.approx(0.62877, abs=1e-5)
    assert (line["accuracy"], line["margin"]) == (0.5, 0.0)


def test_padded_training_takes_the_same_steps(cli, tiny_run):
    steps = ("train.max_steps=6", "train.log_every=1", "train.pairs_per_step=16")
    trained(cli, tiny_run.data, "packed", *steps)
    result = trained(cli, tiny_run.data, "padded", *steps, "model.use_varlen_attn=false", "train.batch_size=4")
    assert "note: use_varlen_attn = false" in result.stderr
    assert "self-test" not in result.stderr
    packed, padded = ([line["loss"] for line in train_lines(Path(run))] for run in ("packed", "padded"))
    assert packed == pytest.approx(padded, rel=1e-4)
    evals = [metrics_of(Path(run))[-1]["eval_loss"] for run in ("packed", "padded")]
    assert evals[0] == pytest.approx(evals[1], rel=1e-4)


def test_forwards_of_a_step_may_be_cut_anywhere(cli, tiny_run, tmp_path):
    """pairs_per_step in one forward, and in many small ones: the same losses."""
    shutil.copytree(tiny_run.data, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    manifest["config"]["data"]["max_packed_length"] = 256
    (tmp_path / "small").mkdir()
    for name in ("train", "eval"):
        shutil.copytree(tiny_run.data / name, tmp_path / "small" / name)
    write_manifest(tmp_path / "small", manifest)
    steps = ("train.max_steps=5", "train.log_every=1")
    trained(cli, tmp_path / "data", "large_forwards", *steps)
    trained(cli, tmp_path / "small", "small_forwards", *steps)
    large, small = ([line["loss"] for line in train_lines(Path(run))] for run in ("large_forwards", "small_forwards"))
    assert large == pytest.approx(small, rel=1e-4)


def test_activation_checkpointing_is_switched_on_and_changes_nothing(cli, tiny_run, monkeypatch):
    switched = []
    real = checkpoint_activations
    monkeypatch.setattr(
        "rmcli.train.run.checkpoint_activations", lambda network, kind: (switched.append(kind), real(network, kind))
    )
    steps = ("train.max_steps=3", "train.log_every=1")
    trained(cli, tiny_run.data, "plain", *steps)
    assert not switched
    for kind in ("selective", "full"):
        trained(cli, tiny_run.data, kind, *steps, f"train.activation_checkpointing={kind}")
        plain, recomputed = ([line["loss"] for line in train_lines(Path(run))] for run in ("plain", kind))
        assert plain == pytest.approx(recomputed, rel=1e-6)
    assert switched == ["selective", "full"]


def test_the_run_folder(tiny_run):
    assert sorted(path.name for path in tiny_run.run.iterdir()) == [
        "backbone",
        "checkpoints",
        "eval_margins.jsonl",
        "metrics.json",
        "metrics.jsonl",
        "model",
        "resolved.toml",
        "run.json",
    ]
    assert resolve(None, [tiny_run.run / "resolved.toml"]).config.train.max_steps == 120
    lines = train_lines(tiny_run.run)
    assert [line["step"] for line in lines] == [1, 50, 100, 120]
    num_pairs = sum(PackedSplit(tiny_run.data, "train").groups_per_pack)
    epochs, rest = divmod(120, -(-num_pairs // 64))  # the last step of an epoch takes what is left
    assert sum(line["pairs"] for line in lines) == epochs * num_pairs + rest * 64
    wanted = {
        "loss",
        "pair_loss",
        "penalty",
        "accuracy",
        "margin",
        "score_mean",
        "score_min",
        "score_max",
        "lr",
        "tokens_per_s",
        "pairs_per_s",
    }
    assert wanted <= lines[0].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert metrics_of(tiny_run.run)[-1]["eval_accuracy"] > 0.6


def test_the_model_folder_scores_the_same_in_plain_transformers(tiny_run, cli):
    lines = (tiny_run.data / "eval.jsonl").read_text().splitlines()[:40]
    result = cli("score", tiny_run.model, "-q", stdin="\n".join(lines))
    ours = [json.loads(line) for line in result.stdout.splitlines()]
    network = AutoModelForSequenceClassification.from_pretrained(tiny_run.model)
    plain_tokenizer = AutoTokenizer.from_pretrained(tiny_run.model)
    assert type(network).__name__ == "LlamaForSequenceClassification"
    assert network.config.problem_type == "regression"
    assert network.config.id2label == {0: "reward"}
    for line, row in zip(ours, map(json.loads, lines), strict=True):
        for side in ("chosen", "rejected"):
            text = plain_tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            inputs = plain_tokenizer(text, add_special_tokens=False, return_tensors="pt")
            assert int(inputs["input_ids"][0, -1]) == network.config.reward_token_id == 4
            with torch.no_grad():
                plain = float(network(**inputs).logits)
            assert line[f"{side}_score"] == pytest.approx(plain, abs=1e-5)
    prompt = plain_tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    assert "reserved" not in prompt


def test_plain_transformers_scores_a_padded_batch_the_same(tiny_run):
    """Pooling finds the last token that is not pad: pad must not be the reward token."""
    network = AutoModelForSequenceClassification.from_pretrained(tiny_run.model)
    plain_tokenizer = AutoTokenizer.from_pretrained(tiny_run.model)
    rows = [json.loads(line) for line in (tiny_run.data / "eval.jsonl").read_text().splitlines()[:6]]
    texts = [plain_tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False) for row in rows]
    with torch.no_grad():
        batch = plain_tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
        together = network(**batch).logits
        alone = [
            network(**plain_tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits for text in texts
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def task_rows(count: int, seed: int) -> list[dict]:
    return [row for row in tasks.generate(count, seed) if row["task"] in ("sort", "format")]


def prepared(cli, rows: list[dict], name: str, tmp_path: Path) -> Path:
    write_lines(tmp_path / f"{name}.jsonl", rows)
    result = cli(
        "prepare", f"{name}.jsonl", "--map-fn", "canonical", *TINY, "-o", name, "-s", "data.eval_fraction=0.2"
    )
    assert result.code == 0, result.stderr
    return tmp_path / name


def swapped(row: dict) -> dict:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def test_swapping_chosen_and_rejected_flips_accuracy(cli, tmp_path, tiny_run):
    rows = task_rows(300, seed=5)
    accuracies = []
    for name, content in (("right", rows), ("swapped", list(map(swapped, rows)))):
        write_lines(tmp_path / f"{name}.jsonl", content)
        result = cli("score", tiny_run.model, f"{name}.jsonl", "-o", f"{name}.out", "--json", "-q")
        accuracies.append(json.loads(result.stdout)["accuracy"])
    assert accuracies[0] > 0.75
    assert sum(accuracies) == pytest.approx(1.0, abs=1e-9)


def test_shuffled_labels_stay_at_chance(cli, tmp_path):
    coin = random.Random(0)
    rows = [row if coin.random() < 0.5 else swapped(row) for row in task_rows(3200, seed=2)]
    folder = prepared(cli, rows, "shuffled", tmp_path)
    trained(cli, folder, "run", "train.max_steps=60", "train.pairs_per_step=32", "train.max_epochs=5")
    accuracy = metrics_of(tmp_path / "run")[-1]["eval_accuracy"]
    pairs = metrics_of(tmp_path / "run")[-1]["eval_pairs"]
    assert pairs > 300
    assert abs(accuracy - 0.5) < 3 * 0.5 / pairs**0.5
    folder = prepared(cli, task_rows(3200, seed=2), "right", tmp_path)
    trained(cli, folder, "right_run", "train.max_steps=60", "train.pairs_per_step=32", "train.max_epochs=5")
    assert metrics_of(tmp_path / "right_run")[-1]["eval_accuracy"] > 0.7


def test_checkpoints_are_renamed_when_complete_and_limited(tiny_run, cli, tmp_path):
    names = [path.name for path in checkpoint.list_checkpoints(tiny_run.run)]
    assert names == ["step-100", "step-120"]  # of 50, 100 and the last one
    assert sorted(path.name for path in (tiny_run.run / "checkpoints").iterdir()) == ["latest", *sorted(names)]
    assert checkpoint.latest(tiny_run.run) == tiny_run.run / "checkpoints" / "step-120"
    limits = ("train.max_steps=4", "train.save_steps=1", "train.save_total_limit=2")
    trained(cli, tiny_run.data, "run", *limits)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run")] == ["step-3", "step-4"]
    config = resolve("tiny").config
    job = build_job(resolve("tiny"), tiny_run.data, tmp_path / "other")
    network = load_model(config.model, job.reward)
    state.read_weights(tmp_path / "run" / "checkpoints" / "step-4", network)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())


def test_a_checkpoint_that_cannot_be_written_is_one_line(cli, tiny_run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("write failed\nNo space left on device")

    monkeypatch.setattr("rmcli.runs.tensors.save_state", full)
    result = trained(cli, tiny_run.data, "run", "train.max_steps=2", "train.save_steps=1", code=1)
    assert "error: cannot write checkpoint run/checkpoints/step-1 of " in result.stderr
    assert " bytes: No space left on device\nhint: is the disk full?\n" in result.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_eval_and_log_intervals(cli, tiny_run, tmp_path):
    trained(cli, tiny_run.data, "run", "train.max_steps=6", "train.eval_steps=2", "train.log_every=3")
    kinds = [(line["step"], "eval" if "eval_loss" in line else "train") for line in metrics_of(tmp_path / "run")]
    assert kinds == [(1, "train"), (2, "eval"), (3, "train"), (4, "eval"), (6, "train"), (6, "eval")]


def test_the_learning_rate_rises_and_falls_to_its_end():
    shares = [optim.schedule(step, 10, 0.2) for step in range(1, 11)]
    assert shares[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert shares[6] == pytest.approx(0.5)
    assert shares == sorted(shares[:2]) + sorted(shares[2:], reverse=True)
    assert shares[-1] < 0.05
    assert optim.schedule(1, 10, 0.0) == 1.0
    assert optim.schedule(7, 10, 0.2, min_lr_ratio=0.2) == pytest.approx(0.6)
    assert 0.2 < optim.schedule(10, 10, 0.2, min_lr_ratio=0.2) < 0.24


def test_the_head_learns_at_its_own_rate():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    section = TrainSection.model_validate({"lr": 0.1, "head_lr": 0.5})
    optimizer = optim.build_optimizer(network, network[1], section)
    optim.set_rates(optimizer, 0.5)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()  # Adam's first step moves each number by its rate
    moved = [float((now.detach() - then).abs().max()) for now, then in zip(network.parameters(), before, strict=True)]
    assert moved == pytest.approx([0.05, 0.05, 0.25], rel=1e-4)
    assert {group["peak_lr"] for group in optimizer.param_groups} == {0.1, 0.5}


def optimizer_step(loss: float, gradient: float, max_norm: float = 1.0, **values) -> tuple[torch.Tensor, ...]:
    linear = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(linear.weight)
    optimizer = optim.build_optimizer(linear, linear, TrainSection.model_validate({"lr": 0.5, **values}))
    linear.weight.grad = torch.full((1, 2), gradient)
    norm, skipped = optim.clip_and_step(linear, optimizer, max_norm, torch.tensor(loss))
    return linear.weight.detach(), norm, skipped


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_what_is_not_finite_never_reaches_the_weights(loss, gradient):
    weight, _, skipped = optimizer_step(loss, gradient)
    assert torch.equal(weight, torch.ones(1, 2))
    assert float(skipped) == 1.0


def test_a_finite_step_moves_the_weights_and_is_clipped():
    weight, norm, skipped = optimizer_step(1.0, 3.0)
    assert float(norm) == pytest.approx(3 * 2**0.5)
    assert float(skipped) == 0.0
    assert torch.allclose(weight, torch.full((1, 2), 0.5))
    decayed, _, _ = optimizer_step(1.0, 3.0, weight_decay=0.1)
    assert torch.allclose(decayed, torch.full((1, 2), 0.45))


def test_a_run_whose_loss_is_not_finite_stops_and_names_step_and_rows(cli, tiny_run, monkeypatch):
    real = scores
    calls = []

    def broken(network, batch, dtype="auto"):
        calls.append(1)
        values = real(network, batch, dtype)
        return values * float("nan") if len(calls) == 3 else values

    monkeypatch.setattr("rmcli.train.loop.scores", broken)
    result = trained(cli, tiny_run.data, "run", "train.max_steps=10", "train.pairs_per_step=4", code=1)
    assert "error: loss or gradient of step 3 is not finite (rows " in result.stderr
    assert " of tasks:6000, " in result.stderr
    assert len(calls) == 4  # read one step later
    assert not Path("run/model").exists()


def test_dry_run_shows_origins_and_the_plan_and_writes_nothing(cli, tiny_run, tmp_path):
    result = cli("train", *TINY, "--data", tiny_run.data, "-n", "-s", "train.max_steps=7")
    assert result.code == 0, result.stderr
    assert "max_steps = 7 # --set train.max_steps" in result.stdout
    assert "# steps = 7" in result.stdout
    assert "# pairs_per_step = 64" in result.stdout
    assert "# memory_need_gib = " in result.stdout
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(cli("train", *TINY, "--data", tiny_run.data, "-n", "--json").stdout)["plan"]
    cut = (*TINY, "--data", tiny_run.data, "-n", "--json", "-s", "train.max_steps=2", "-s", "train.max_epochs=9")
    packs = json.loads(cli("train", *cut, "-s", "train.pairs_per_step=none").stdout)["plan"]
    assert packs["pairs_per_step"] == pytest.approx(packs["pairs"] / packs["packs"], abs=0.1)  # one pack a step
    # embedding 384 x 64; per layer 4 x 64^2 attention, 3 x 64 x 192 MLP, 2 norms; final norm and head
    assert plan["parameters"] == 384 * 64 + 3 * (4 * 64**2 + 3 * 64 * 192 + 2 * 64) + 64 + 64


def test_the_self_test_is_shown_and_stops_a_broken_attention(cli, tiny_run, monkeypatch):
    from rmcli.model.attention.layout import PackedLayout

    shown = trained(cli, tiny_run.data, "run", "train.max_steps=1").stderr
    assert "self-test: packed + shared against each conversation alone" in shown
    monkeypatch.setattr(PackedLayout, "mask", lambda self, q, k, w, d: torch.ones(q, k, dtype=torch.bool))
    result = trained(cli, tiny_run.data, "broken", "train.max_steps=1", code=1)
    assert "error: self-test failed" in result.stderr


# --- which data ---


def test_train_takes_the_set_prepared_for_its_preset(cli):
    assert cli("prepare", "tasks:200", *TINY).code == 0
    result = cli("train", *TINY, "-s", "train.max_steps=1")
    assert result.code == 0, result.stderr
    assert "data: data/checkable_tasks-tiny" in result.stderr
    assert result.stdout == "runs/tiny-1/model\n"
    assert cli("train", *TINY, "-s", "train.max_steps=1").stdout == "runs/tiny-2/model\n"


def test_train_prepares_the_one_source_prepared_for_another_preset(cli, tmp_path):
    (tmp_path / "other.toml").write_text(resolve("tiny").toml().replace('name = "tiny"', 'name = "other"'))
    assert cli("prepare", "tasks:200", "-c", "other.toml", "-s", "data.eval_fraction=0.5").code == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["checkable_tasks-other"]
    result = cli("train", *TINY, "-s", "train.max_steps=1")
    assert result.code == 0, result.stderr
    assert (
        "note: no data for preset tiny yet: tasks:200 with checkable_tasks is prepared for it first" in result.stderr
    )
    manifest = read_manifest(tmp_path / "data" / "checkable_tasks-tiny")
    assert manifest["config"]["data"]["eval_fraction"] == 0.5  # held out as it was there


def test_a_damaged_set_in_the_folder_stops_nobody(cli, tmp_path):
    assert cli("prepare", "tasks:200", *TINY).code == 0
    (tmp_path / "data" / "foreign").mkdir()
    (tmp_path / "data" / "foreign" / "manifest.json").write_text("[]")
    result = cli("train", *TINY, "-s", "train.max_steps=1")
    assert result.code == 0, result.stderr
    assert "note: data/foreign is left out" in result.stderr


def test_dry_run_prepares_nothing(cli, tmp_path):
    (tmp_path / "other.toml").write_text(resolve("tiny").toml().replace('name = "tiny"', 'name = "other"'))
    assert cli("prepare", "tasks:200", "-c", "other.toml").code == 0
    result = cli("train", *TINY, "-n")
    assert result.code == 1
    assert "hint: run: rmcli prepare tasks:200 --map-fn checkable_tasks --preset tiny" in result.stderr
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_train_without_any_data_prints_the_command_to_run(cli):
    result = cli("train", "--preset", "llama3-8b")
    assert result.code == 1
    assert "error: no data for preset llama3-8b: nothing is prepared in data/" in result.stderr
    assert "hint: run: rmcli prepare --map-fn F --preset llama3-8b" in result.stderr


def test_train_with_several_sets_asks_which(cli):
    for count in (100, 101):
        assert cli("prepare", f"tasks:{count}", *TINY, "-o", f"data/{count}").code == 0
    result = cli("train", *TINY)
    assert result.code == 2
    assert "several sets are prepared for tiny: data/100, data/101" in result.stderr


# --- refusals ---


def test_data_for_another_tokenizer_is_refused_with_both_names(cli, tiny_run, tmp_path):
    folder = tmp_path / "other"
    longer = AutoTokenizer.from_pretrained(resolve_tiny_folder())
    longer.add_tokens(["another"])
    longer.save_pretrained(folder)
    shutil.copy(resolve_tiny_folder() / "config.json", folder)
    other = f"model.tokenizer_name_or_path={folder}"
    result = trained(cli, tiny_run.data, "run", other, code=1)
    recorded = read_manifest(tiny_run.data)["tokenizer_sha256"][:8]
    assert f"for preset tiny with another tokenizer than that of {folder} ({recorded}, not " in result.stderr
    assert "or train preset tiny on it" in result.stderr
    assert not Path("run").exists()


def resolve_tiny_folder() -> Path:
    from rmcli.config.presets import presets_folder

    return presets_folder() / "tiny"


def test_data_with_another_reward_token_is_refused(cli, tiny_run):
    other = (
        "model.reward_token='<unk>'",
        "model.reward_token_id=0",
        "model.reward_token='!'",
        "model.reward_token_id=5",
    )
    result = trained(cli, tiny_run.data, "run", *other[2:], "model.allow_ordinary_reward_token=true", code=1)
    assert "reward token <|reserved_special_token_0|> (4, reserved), not ! (5, reserved)" in result.stderr


def test_a_config_files_wish_counts_whatever_its_name(cli, tiny_run, tmp_path):
    (tmp_path / "default.toml").write_text("[data]\nmax_length = 128\n")
    result = cli("train", *TINY, "--data", tiny_run.data, "-o", "run", "-c", "default.toml")
    assert result.code == 2
    assert "data.max_length = 128 (default.toml), but" in result.stderr


def test_a_run_can_be_repeated_from_its_resolved_toml(cli, tiny_run, tmp_path):
    steps = ("train.max_steps=3", "train.log_every=1")
    trained(cli, tiny_run.data, "first", *steps)
    result = cli("train", "-c", "first/resolved.toml", "--data", tiny_run.data, "-o", "second")
    assert result.code == 0, result.stderr
    first, second = ([line["loss"] for line in train_lines(tmp_path / run)] for run in ("first", "second"))
    assert first == second
    assert (tmp_path / "first" / "resolved.toml").read_text() == (tmp_path / "second" / "resolved.toml").read_text()


def test_data_settings_are_those_of_the_data(cli, tiny_run):
    result = trained(cli, tiny_run.data, "run", "data.max_length=100", code=2)
    assert "data.max_length = 100 (--set data.max_length), but" in result.stderr
    assert "was prepared with 256" in result.stderr


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (("train.device=cuda",), 2, "torch sees no CUDA device"),
        (("model.pretrained_model_name_or_path=./gone",), 2, "model ./gone: no such folder"),
        (("model.random_weights=false",), 1, "cannot load the weights of {presets}/tiny"),
        (("train.lrr=1",), 2, "unknown key train.lrr"),
    ],
)
def test_bad_settings(cli, tiny_run, settings, code, message):
    if "cuda" in message.lower() and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    result = trained(cli, tiny_run.data, "run", *settings, code=code)
    assert message in result.stderr
    assert not (Path("run") / "model").exists()


def test_bad_folders(cli, tiny_run, tmp_path):
    result = cli("train", *TINY, "--data", "nowhere")
    assert (result.code, "nowhere holds no prepared data" in result.stderr) == (1, True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    assert "run folder run is not empty" in trained(cli, tiny_run.data, "run", code=1).stderr
    assert "cannot write /sys/rmcli" in trained(cli, tiny_run.data, "/sys/rmcli", code=1).stderr


def test_memory_is_compared_before_loading(cli, tiny_run, monkeypatch):
    monkeypatch.setattr("rmcli.train.memory.free_memory", lambda device, processes: 45 * 2**20)
    result = trained(cli, tiny_run.data, "run", code=1)
    assert "error: not enough memory on cpu: need about " in result.stderr
    assert "have 45 MiB" in result.stderr
    assert "hint: what would fit: data.max_packed_length up to 9" in result.stderr
    assert not Path("run").exists()
    trained(cli, tiny_run.data, "run", "train.check_memory=false", "train.max_steps=1")


def test_the_memory_of_an_8b_model_is_known_from_its_config():
    from transformers import LlamaConfig

    llama_3_8b = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    config = resolve("llama3-8b").config
    need = estimate(sizes_of(config, llama_3_8b), config, 16384, several_forwards=True)
    assert need.num_parameters == 7_504_928_768  # 8.03 billion less the LM head
    assert need.held == 16 * need.num_parameters


def test_ctrl_c_is_130(cli, tiny_run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rmcli.train.run.run", interrupt)
    assert "error: interrupted" in trained(cli, tiny_run.data, "run", code=130).stderr


def test_a_damaged_head_is_refused(tiny_run, tmp_path):
    folder = tmp_path / "model"
    network = AutoModelForSequenceClassification.from_pretrained(tiny_run.model)
    torch.nn.init.constant_(network.score.weight, float("nan"))
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_run.model).save_pretrained(folder)
    section = resolve("tiny").config.model.model_copy(
        update={"pretrained_model_name_or_path": str(folder), "random_weights": False}
    )
    job_reward = tokenizer.load_tokenizer(section)
    with pytest.raises(RmcliError, match=r"score.weight in the weights of .* is not finite"):
        load_model(section, job_reward)


def test_training_goes_on_from_a_trained_head(tiny_run):
    section = resolve("tiny").config.model.model_copy(
        update={"pretrained_model_name_or_path": str(tiny_run.model), "random_weights": False}
    )
    network = load_model(section, tokenizer.load_tokenizer(section))
    assert network.score.weight.abs().max() > 0


# --- speed: the meter, the feed, the profile ---


def test_the_meter_is_in_the_metrics(cli, tiny_run):
    result = trained(cli, tiny_run.data, "run", "train.max_steps=3", "train.log_every=1", "train.peak_tflops=0.5")
    lines = train_lines(Path("run"))
    assert len(lines) == 3
    for line in lines:
        assert line["mfu"] == pytest.approx(line["flops_per_s"] / 0.5e12)
        assert line["effective_mfu"] == pytest.approx(line["effective_flops_per_s"] / 0.5e12)
        assert line["flops_per_s"] < line["effective_flops_per_s"]  # prompts are shared
        # 6 FLOPs per weight and token, and attention: between the weights of all layers and twice that.
        per_token = line["flops_per_s"] / line["tokens_per_s"]
        assert 0.5 < per_token / 1e6 < 5
    assert "MFU" in result.stderr


def test_without_a_known_peak_there_is_no_mfu(tiny_run):
    line = train_lines(tiny_run.run)[0]
    assert line["flops_per_s"] > 0
    assert "mfu" not in line


def test_what_is_built_ahead_comes_in_order_and_one_at_a_time():
    built = []

    def build(number: int) -> int:
        built.append(number)
        return number * number

    seen = []
    for square in ahead(build, range(10)):
        assert len(built) <= len(seen) + STEPS_AHEAD + 1
        seen.append(square)
    assert seen == [number * number for number in range(10)]
    assert built == list(range(10))


def test_what_building_ahead_raises_comes_out_at_its_place():
    def build(number: int) -> int:
        if number == 3:
            raise RmcliError("no", "hint")
        return number

    fed = ahead(build, range(10))
    assert [next(fed) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RmcliError):
        next(fed)


@pytest.mark.parametrize(
    "levers", [(), ("model.dtype=bfloat16", "train.master_weights=split", "train.optimizer=adamw_8bit")]
)
def test_a_step_never_waits_for_the_device(tiny_run, tmp_path, levers):
    job = build_job(resolve("tiny", settings=levers), tiny_run.data, tmp_path / "run")
    network = load_model(job.config.model, job.reward, 0, "packed")
    trainer = Trainer(job, network, optim.build_optimizer(network, score_head(network), job.config.train), "packed")
    steps = plan(job.sizes, job.config.train, "packed", job.config.data.max_packed_length)
    feeds = [trainer.feeder.build(step) for step, _ in zip(steps, range(2), strict=False)]
    trainer.run_step(feeds[0])
    with NoWaiting():
        skipped = trainer.run_step(feeds[1])
        with pytest.raises(AssertionError):
            skipped.read()


def test_the_collector_is_kept_out_of_steps(cli, tiny_run, monkeypatch):
    seen = []
    whole = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", lambda self, feed: (seen.append(gc.isenabled()), whole(self, feed))[1])
    monkeypatch.setattr("support.cli._keep_modules_out_of_collections", lambda: None)
    gc.unfreeze()
    trained(cli, tiny_run.data, "run", "train.max_steps=2")
    assert seen == [False, False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as a caller who keeps things out of it for good
    trained(cli, tiny_run.data, "again", "train.max_steps=1")
    assert gc.get_freeze_count() > 0


def test_a_profile_shows_where_a_step_goes(cli, tiny_run):
    small = ("-p", "tiny", "--data", tiny_run.data, "-s", "train.pairs_per_step=4", "--profile")
    result = cli("train", *small, "-o", "run", "-s", "train.max_steps=6")
    assert result.code == 0, result.stderr
    trace = json.loads(gzip.decompress(Path("run/profile/trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    shares = {
        line[:12].strip(): float(line.split()[-1].rstrip("%"))
        for line in Path("run/profile/summary.txt").read_text().splitlines()
    }
    assert set(shares) == {"matmul", "attention", "optimizer", "moving data", "elementwise"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert "of one step (3 profiled)" in result.stderr
    few = cli("train", *small, "-o", "few", "-s", "train.max_steps=2")
    assert "2 steps are too few, no profile" in few.stderr
