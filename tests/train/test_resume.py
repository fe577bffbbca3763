"""A run that was stopped and goes on is the run that was never stopped, bit by bit; what may change and what not."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from nano_run import files, lines, settings
from rmcli.model.batch import build_batch
from rmcli.model.hashes import write_hashes
from rmcli.runs import checkpoint
from rmcli.train.loop import Trainer
from rmcli.train.past import FREE, LONGER, ROUNDING

STEPS = ("train.max_epochs=2", "train.log_every=4", "train.eval_steps=3", "train.save_steps=100")
# 90 pairs, 16 a step: 6 steps an epoch. After the first step, between two log lines and inside an epoch, at its
# border, and after the last one.
STOPS = (1, 3, 6, 12)


@pytest.fixture
def train(cli, nano, monkeypatch):
    """`train("run", "train.lr=1e-3", stop_after=3)`; `resume=True` gives nothing but the folder and the settings."""

    def start(
        out: str, *keys: str, stop_after: int = 0, resume: bool = False, by: int = signal.SIGTERM, code: int = 0
    ):
        whole = Trainer.run_step

        def stopping(self, feed):
            if feed.step.number == stop_after:
                os.kill(os.getpid(), by)
            return whole(self, feed)

        own = settings(f"model.pretrained_model_name_or_path={nano}", "train.pairs_per_step=16")
        first = ("-p", "tiny", "--data", "data", *own)
        how = ("--resume",) if resume else first
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run_step", stopping)
            result = cli("train", *how, "-o", out, *settings(*keys))
        assert result.code == code, result.stderr
        return result

    return start


@pytest.fixture
def pairs(cli, nano_data):
    shutil.copytree(nano_data, "data")


@pytest.fixture
def groups_of_three(cli, nano):
    rows = [
        {"prompt": f"Say {n}", "responses": [f"{n}", f"{n} {n}", f"no {n}"], "ranks": [1, 2, 3], "weight": 1 + n % 2}
        for n in range(90)
    ]
    Path("k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"model.pretrained_model_name_or_path={nano}"
    options = ("-p", "tiny", "-o", "data", "--no-audit", "--map-fn", "canonical")
    assert cli("prepare", "k.jsonl", *options, *settings(model, "data.eval_fraction=0.1")).code == 0


def check_every_stop(train, *keys: str, stops=STOPS):
    keys = (*STEPS, *keys)
    train("whole", *keys)
    for number, stop in enumerate(stops):
        given = keys if number == 0 else ()
        result = train("run", *given, stop_after=stop, resume=number > 0, code=143)
        assert (
            f"error: stopped by SIGTERM after step {stop} of 12; the last checkpoint is run/checkpoints/step-{stop}\n"
            in result.stderr
        )
        assert "hint: go on with: rmcli train --resume -o run\n" in result.stderr
    assert not Path("run/model").exists()
    train("run", resume=True)
    assert lines("run") == lines("whole")
    assert files(Path("run/model")) == files(Path("whole/model"))
    assert sorted(path.name for path in Path("run").iterdir()) == sorted(
        path.name for path in Path("whole").iterdir()
    )


def test_a_run_stopped_anywhere_goes_on_bit_by_bit(pairs, train):
    check_every_stop(train)


def test_split_masters_and_8_bit_states_go_on_bit_by_bit(pairs, train):
    levers = ("model.dtype=bfloat16", "train.master_weights=split", "train.optimizer=adamw_8bit")
    check_every_stop(train, *levers, stops=(3, 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    "levers",
    [
        ("train.optimizer=adamw_8bit",),
        ("model.dtype=bfloat16", "train.master_weights=split"),
        ("train.async_checkpoint=true", "train.activation_checkpointing=selective", "train.best=eval_loss"),
        ("model.use_varlen_attn=false", "train.batch_size=4"),
        ("train.deterministic=true", "train.nonfinite=skip"),
    ],
)
def test_every_lever_goes_on_bit_by_bit(pairs, train, levers):
    check_every_stop(train, *levers)


@pytest.mark.slow
def test_accumulation_goes_on_bit_by_bit(pairs, train):
    keys = ("train.pairs_per_step=none", "train.accumulative_counts=2", "train.log_every=2", "train.max_epochs=4")
    train("whole", *keys)
    total = lines("whole")[-1]["step"]
    for number, stop in enumerate((1, total // 2, total)):
        train("run", *(keys if number == 0 else ()), stop_after=stop, resume=number > 0, code=143)
    train("run", resume=True)
    assert lines("run") == lines("whole")
    assert files(Path("run/model")) == files(Path("whole/model"))


@pytest.mark.slow
def test_groups_of_many_answers_go_on_bit_by_bit(groups_of_three, train):
    check_every_stop(train, "loss.loss_type=plackett_luce")


def test_a_grown_embedding_goes_on_bit_by_bit(cli, nano, train):
    own = f"model.pretrained_model_name_or_path={nano}"
    token = ("model.reward_token='<|reward|>'", "model.reward_token_id=384")
    assert cli("prepare", "tasks:60", "-p", "tiny", "-o", "data", "--no-audit", *settings(own, *token)).code == 0
    keys = (*token, "train.max_steps=4")
    assert "the embedding grows from 384 to 448 rows" in train("whole", *keys).stderr
    train("run", *keys, stop_after=2, code=143)
    assert "the embedding grows" not in train("run", resume=True).stderr
    assert files(Path("run/model")) == files(Path("whole/model"))


def test_going_on_reads_neither_the_base_model_nor_a_hub(cli, pairs, train, nano, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    shutil.copytree(nano, moved)
    keys = (f"model.pretrained_model_name_or_path={moved}", "train.max_steps=6")
    train("whole", *keys)
    train("run", *keys, stop_after=2, code=143)
    shutil.rmtree(moved)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    train("run", resume=True)
    assert files(Path("run/model")) == files(Path("whole/model"))


def test_one_line_serves_the_first_start_and_the_requeue(cli, pairs, train, nano):
    model = f"model.pretrained_model_name_or_path={nano}"
    line = ("train", "--resume", "-p", "tiny", "--data", "data", "-o", "run", *settings(model, "train.max_steps=4"))
    assert cli(*line).code == 0  # begins
    again = cli(*line)
    assert (again.code, again.stdout) == (0, "run/model\n")
    assert "run is finished: all 4 steps are done" in again.stderr
    train("other", "train.max_steps=4", stop_after=2, code=143)
    line = ("other" if part == "run" else part for part in line)
    assert "going on from other/checkpoints/step-2, after step 2 of 4" in cli(*line).stderr


def test_the_newest_run_that_ended_early_goes_on(cli, pairs, train):
    assert "error: no run in runs/ has ended early\n" in cli("train", "--resume").stderr
    train("runs/a", "train.max_steps=4", stop_after=2, code=143)
    train("runs/b", "train.max_steps=4", stop_after=2, code=143)
    train("runs/c", "train.max_steps=2")
    told = json.loads(Path("runs/a/run.json").read_text())
    Path("runs/a/run.json").write_text(json.dumps(told | {"started": "2001-01-01T00:00:00+00:00"}))
    assert "going on from runs/b/checkpoints/step-2" in cli("train", "--resume").stderr
    told = json.loads(Path("runs/b/run.json").read_text())
    assert [(one["step"], one["device"]) for one in told["resumed"]] == [(2, "cpu")]
    assert told["result"]["status"] == "finished"
    assert "going on from runs/a/checkpoints/step-2" in cli("train", "--resume").stderr


def test_a_run_that_ended_early_is_not_begun_anew_unasked(pairs, train):
    train("run", "train.max_steps=4", stop_after=2, code=143)
    result = train("run", "train.max_steps=4", code=1)
    assert (
        "error: run folder run is not empty: a run that was interrupted; it has checkpoints/step-2\n" in result.stderr
    )
    assert "hint: go on with it: rmcli train --resume -o run, or choose another with -o\n" in result.stderr


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("train.lr=1e-3", "train.lr = 0.001 (--set train.lr), but run/checkpoints/step-2 was trained with 0.004"),
        ("train.seed=1", "train.seed = 1 (--set train.seed), but run/checkpoints/step-2 was trained with 0"),
        ("loss.loss_type=focal", "loss.loss_type = 'focal' (--set loss.loss_type), but"),
        ("train.pairs_per_step=8", "train.pairs_per_step = 8 (--set train.pairs_per_step), but"),
        ("train.optimizer=adamw_8bit", "train.optimizer = 'adamw_8bit' (--set train.optimizer), but"),
        ("train.max_steps=3", "3 steps in all, but the run was to have 4 and has 2 behind it"),
    ],
)
def test_what_would_make_it_another_run_is_refused_with_both_values(stopped_run, cli, key, told):
    shutil.copytree(stopped_run, "run")
    shutil.copytree(stopped_run.parent / "data", "data")
    before = files(Path("run/checkpoints/step-2"))
    result = cli("train", "--resume", "-o", "run", "--data", "data", "-s", key)
    assert (result.code, told in result.stderr) == (2, True), result.stderr
    assert files(Path("run/checkpoints/step-2")) == before


@pytest.fixture(scope="session")
def stopped_run(tmp_path_factory, nano, nano_data):
    """Four steps, stopped after the second; the data lies beside it."""
    from support.cli import run_cli

    folder = tmp_path_factory.mktemp("stopped")
    model = settings(f"model.pretrained_model_name_or_path={nano}")
    shutil.copytree(nano_data, folder / "data")
    whole = Trainer.run_step
    Trainer.run_step = lambda self, feed: (
        os.kill(os.getpid(), signal.SIGUSR1) if feed.step.number == 2 else None,
        whole(self, feed),
    )[1]
    try:
        keys = settings("train.max_steps=4", "train.pairs_per_step=16", "train.best=eval_loss")
        result = run_cli("train", "-p", "tiny", "--data", folder / "data", "-o", folder / "run", *model, *keys)
    finally:
        Trainer.run_step = whole
    assert result.code == 143, result.stderr
    return folder / "run"


@pytest.fixture
def run(cli, stopped_run) -> Path:
    """A copy of the stopped run, which goes on with the data beside it."""
    shutil.copytree(stopped_run, "run")
    return Path("run")


def test_what_changes_no_bit_may_change(run, cli, stopped_run):
    changed = {
        "data.num_proc": "2",
        "eval.sets": f"[{{name='more',path='{stopped_run.parent / 'data'}'}}]",
        "train.async_checkpoint": "true",
        "train.check_memory": "false",
        "train.early_stopping_patience": "9",
        "train.early_stopping_threshold": "0.1",
        "train.eval_steps": "1",
        "train.log_every": "1",
        "train.max_skipped": "3",
        "train.nonfinite": "skip",
        "train.peak_tflops": "1.0",
        "train.save_minutes": "5.0",
        "train.save_steps": "1",
        "train.save_total_limit": "1",
        "train.trackers": '["tensorboard"]',
    }
    assert set(changed) == set(FREE)
    shutil.copytree("run", "plain")
    assert cli("train", "--resume", "-o", "plain").code == 0
    result = cli("train", "--resume", "-o", "run", *settings(*(f"{key}={value}" for key, value in changed.items())))
    assert result.code == 0, result.stderr
    assert "not bitwise" not in result.stderr
    assert [line["step"] for line in lines("run") if "loss" in line] == [1, 3, 4]
    name = "model.safetensors"
    assert files(Path("run/model"))[name] == files(Path("plain/model"))[name]


def test_what_changes_only_roundings_may_change_and_is_said(run, cli):
    assert set(ROUNDING) >= {"train.activation_checkpointing", "train.device", "model.attention"}
    result = cli(
        "train", "--resume", "-o", "run", "-s", "train.activation_checkpointing=full", "-s", "train.device=cpu"
    )
    assert result.code == 0, result.stderr
    assert (
        "note: train.device = 'cpu' instead of 'auto', train.activation_checkpointing = 'full' instead of 'none': "
        "the run goes on, not bitwise as without the stop\n"
    ) in result.stderr


def test_a_run_may_become_longer_and_both_rates_are_said(run, cli):
    assert set(LONGER) == {"train.max_epochs", "train.max_steps"}
    assert cli("train", "--resume", "-o", "run").code == 0
    result = cli("train", "--resume", "-o", "run", "-s", "train.max_steps=6")
    assert result.code == 0, result.stderr
    assert (
        "note: 6 steps instead of 4: from step 5 on the learning rate follows the longer schedule (" in result.stderr
    )
    assert "not bitwise a run of 6 steps from the start" in result.stderr
    assert [line["step"] for line in lines("run")] == [1, 4, 4, 6, 6]


def test_moved_data_is_named_and_other_data_refused(run, cli, stopped_run, monkeypatch):
    shutil.copytree(stopped_run.parent / "data", "moved")
    told = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(told | {"data": {"folder": "/nowhere"}}))
    result = cli("train", "--resume", "-o", "run")
    assert "error: the data of run is not there any more: /nowhere\nhint: give the place it has now" in result.stderr
    assert cli("prepare", "tasks:50", "-p", "tiny", "-o", "other", "--no-audit").code == 0
    result = cli("train", "--resume", "-o", "run", "--data", "other")
    here, there = (json.loads((folder / "manifest.json").read_text()) for folder in (Path("other"), Path("moved")))
    assert f"manifest_sha256 is {here['manifest_sha256']}, but" in result.stderr
    assert f"was trained with {there['manifest_sha256']}" in result.stderr
    assert cli("train", "--resume", "-o", "run", "--data", "moved").code == 0


def test_other_versions_and_threads_are_said(run, cli, monkeypatch):
    monkeypatch.setattr("rmcli.__version__", "9.9")
    monkeypatch.setattr("rmcli.runs.record.__version__", "9.9")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    result = cli("train", "--resume", "-o", "run")
    assert result.code == 0, result.stderr
    assert "rmcli 9.9 (was 0.1.0), 77 threads (was " in result.stderr
    assert "not bitwise" in result.stderr


def test_building_batches_draws_no_random_number(tiny_run):
    """Or the thread that builds ahead would change what dropout draws."""
    from rmcli.packs.reader import PackedSplit

    groups = PackedSplit(tiny_run.data, "train").groups(0)
    before = torch.get_rng_state()
    for kind in ("packed", "single", "padded"):
        build_batch(kind, groups, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_whose_export_failed_only_exports(cli, pairs, train, monkeypatch):
    train("whole", "train.max_steps=3")
    whole_step = Trainer.run_step

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rmcli.train.run.export", full)
        result = train("run", "train.max_steps=3", code=1)
    assert (
        "cannot write into run: No space left on device; the last checkpoint is run/checkpoints/step-3"
        in result.stderr
    )
    steps = []
    monkeypatch.setattr(Trainer, "run_step", lambda self, feed: (steps.append(feed), whole_step(self, feed))[1])
    assert cli("train", "--resume", "-o", "run").code == 0
    assert steps == []
    assert files(Path("run/model")) == files(Path("whole/model"))


def test_the_best_evaluation_is_kept_apart_and_exported(cli, pairs, train):
    keys = ("train.best=eval_loss", "train.eval_steps=1", "train.max_steps=6", "train.lr=0.5", "train.save_steps=2")
    train("run", *keys, stop_after=4, code=143)
    train("run", resume=True)
    losses = {line["step"]: line["eval_loss"] for line in lines("run") if "eval_loss" in line}
    best = min(losses, key=losses.get)
    assert [path.name for path in checkpoint.list_checkpoints(Path("run"), checkpoint.BEST)] == [f"best-step-{best}"]
    train(
        "short",
        "train.max_steps=6",
        "train.lr=0.5",
        "train.eval_steps=1",
        "train.save_steps=1",
        "train.save_total_limit=9",
    )
    assert cli("export", f"short/checkpoints/step-{best}", "-o", "expected").code == 0
    assert files(Path("run/model-best"))["model.safetensors"] == files(Path("expected"))["model.safetensors"]


def test_best_needs_pairs_held_out(cli, nano, train):
    model = settings(f"model.pretrained_model_name_or_path={nano}", "data.eval_fraction=0.0")
    assert cli("prepare", "tasks:30", "-p", "tiny", "-o", "data", "--no-audit", *model).code == 0
    result = train("run", "train.best=eval_accuracy", code=2)
    assert "error: train.best = 'eval_accuracy', but data has no pairs held out\n" in result.stderr


def test_a_model_folder_that_is_gone_is_written_again(run, cli):
    assert cli("train", "--resume", "-o", "run").code == 0
    before = files(Path("run/model"))
    shutil.rmtree("run/model")
    assert cli("train", "--resume", "-o", "run").code == 0
    assert files(Path("run/model")) == before
    shutil.rmtree("run/checkpoints")
    result = cli("train", "--resume", "-o", "run")
    assert "error: run is finished and has no checkpoint to go on from\n" in result.stderr


def test_rows_that_run_otherwise_than_before_are_said(run, cli):
    """As where the self-test fails on another machine."""
    path = Path("run/checkpoints/step-2")
    told = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(told | {"rows": "single"}))
    (path / "rmcli.sha256").unlink()
    write_hashes(path)
    result = cli("train", "--resume", "-o", "run")
    assert result.code == 0, result.stderr
    assert "note: rows run packed, before they ran single: the run goes on, not bitwise" in result.stderr
