"""A run that stops early: when, where it ends, what goes on from there; interrupted it stops at the same step."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from nano_run import files, lines, settings
from rmcli.config.sections import Config
from rmcli.runs import checkpoint
from rmcli.train.best import Best, is_over
from rmcli.train.loop import Trainer
from support.cli import run_cli

# 12 steps. No evaluation is better than the first by 5: it stops at the third one, between two log lines.
STOPPING = (
    *("train.max_epochs=2", "train.log_every=5", "train.eval_steps=2", "train.save_steps=100"),
    *("train.best=eval_loss", "train.early_stopping_patience=2", "train.early_stopping_threshold=5.0"),
)
SAID = "stopped early at step 6 of 12: eval_loss has not fallen by more than 5 for 2 evaluations; best "


def config_of(figure: str, patience: int | None = None, threshold: float = 0.0) -> Config:
    train = {"best": figure, "eval_steps": 1, "early_stopping_threshold": threshold}
    return Config.model_validate({"train": {**train, "early_stopping_patience": patience}})


def best_of(figure: str, patience: int | None = None, threshold: float = 0.0) -> Best:
    return Best(config_of(figure, patience, threshold))


def stale_after(best: Best, *values: float | None) -> list[int]:
    found = []
    for step, value in enumerate(values, 1):
        best.is_new(step, {} if value is None else {best.figure: value})
        found.append(best.stale)
    return found


def test_an_evaluation_that_is_not_better_is_counted():
    best = best_of("eval_accuracy")
    assert stale_after(best, 0.5, 0.5, 0.6, 0.4, 0.6, 0.7) == [0, 1, 0, 1, 2, 0]
    assert best.found == {"step": 6, "value": 0.7}


def test_less_is_better_of_a_loss():
    best = best_of("eval_log_loss")
    assert stale_after(best, 0.5, 0.6, 0.4) == [0, 1, 0]
    assert best.found == {"step": 3, "value": 0.4}


def test_what_is_better_by_less_than_the_threshold_is_the_best_and_counted_all_the_same():
    """As transformers' EarlyStoppingCallback, whose best metric moves with each of them."""
    best = best_of("eval_accuracy", threshold=0.1)
    assert stale_after(best, 0.5, 0.59, 0.65, 0.7, 0.9) == [0, 1, 2, 3, 0]
    assert best.found == {"step": 5, "value": 0.9}


def test_what_is_no_number_is_never_the_best(capsys):
    best = best_of("eval_loss")
    assert stale_after(best, float("nan"), None, 0.5, float("-inf")) == [1, 2, 0, 1]
    assert best.found == {"step": 3, "value": 0.5}
    assert capsys.readouterr().err == (
        "note: step 1: eval_loss is no number, so that this evaluation cannot be the best one\n"
    )


def test_it_is_enough_when_the_patience_is_used_up():
    best = best_of("eval_loss", patience=2)
    enough = []
    for step, value in enumerate((1.0, 1.0, 0.5, 0.6, 0.7), 1):
        best.is_new(step, {"eval_loss": value})
        enough.append(best.has_waited_enough)
    assert enough == [False, False, False, False, True]
    assert best.stop_early(5, 9) == (
        "stopped early at step 5 of 9: eval_loss has not fallen for 2 evaluations; best 0.5 at step 3"
    )
    forever = best_of("eval_loss")
    assert stale_after(forever, 1.0, *[2.0] * 20)[-1] == 20
    assert not forever.has_waited_enough


def test_only_a_larger_patience_or_none_lets_it_go_on():
    facts = {"stopped_early": "at step 6", "stale": 2}
    for patience, over in ((1, True), (2, True), (3, False), (None, False)):
        assert is_over(config_of("eval_loss", patience), facts) == over
    assert not is_over(config_of("eval_loss", 2), {"stale": 5, "stopped_early": None})
    assert not is_over(config_of("eval_loss", 2), {})  # of a run from before there was such a thing


@pytest.fixture(scope="module")
def ended(tmp_path_factory, nano, nano_data) -> Path:
    """A run that stopped early, and what it said."""
    folder = tmp_path_factory.mktemp("ended")
    keys = settings(f"model.pretrained_model_name_or_path={nano}", "train.pairs_per_step=16", *STOPPING)
    result = run_cli("train", "-p", "tiny", "--data", nano_data, "-o", folder / "run", *keys)
    assert result.code == 0, result.stderr
    (folder / "said").write_text(result.stderr)
    return folder / "run"


@pytest.fixture
def run(cli, ended) -> Path:
    """A copy of it."""
    shutil.copytree(ended, "run")
    return Path("run")


@pytest.fixture
def train(cli, nano, nano_data, monkeypatch):
    """`train("run", "train.lr=1e-3", stop_after=3)`; `resume=True` gives nothing but the folder and the settings."""
    shutil.copytree(nano_data, "data")

    def start(out: str, *keys: str, stop_after: int = 0, resume: bool = False, code: int = 0):
        whole = Trainer.run_step

        def stopping(self, feed):
            if feed.step.number == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(self, feed)

        own = settings(f"model.pretrained_model_name_or_path={nano}", "train.pairs_per_step=16")
        how = ("--resume",) if resume else ("-p", "tiny", "--data", "data", *own)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "run_step", stopping)
            result = cli("train", *how, "-o", out, *settings(*keys))
        assert result.code == code, result.stderr
        return result

    return start


def weights_of(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def steps_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    whole = Trainer.run_step
    monkeypatch.setattr(
        Trainer, "run_step", lambda self, feed: (steps.append(feed.step.number), whole(self, feed))[1]
    )
    return steps


def test_a_run_that_stops_early_ends_as_after_its_last_step(ended):
    assert SAID in (ended.parent / "said").read_text()
    assert [(line["step"], "eval_loss" in line) for line in lines(ended)] == [
        *((1, False), (2, True), (4, True), (5, False), (6, True), (6, False)),
    ]
    assert checkpoint.latest(ended).name == "step-6"
    told = json.loads((ended / "run.json").read_text())["result"]
    assert (told["status"], told["step"], told["stopped_early"][: len(SAID)]) == ("finished", 6, SAID)
    assert (told["best"]["figure"], told["best"]["step"]) == ("eval_loss", told["best"]["step"])
    assert json.loads((ended / "metrics.json").read_text())["run"]["step"] == 6
    assert "step 6" in (ended / "model" / "README.md").read_text()


@pytest.mark.slow
def test_its_model_is_that_of_this_step_and_its_best_that_of_the_best(cli, run, train):
    best = json.loads(Path("run/checkpoints/step-6/checkpoint.json").read_text())["best"]["step"]
    train("long", *STOPPING[:-2], "train.save_steps=2", "train.save_total_limit=9")
    for step, model in ((6, "model"), (best, "model-best")):
        assert cli("export", f"long/checkpoints/step-{step}", "-o", f"at-{step}", "--overwrite").code == 0
        assert weights_of(Path("run") / model) == weights_of(Path(f"at-{step}"))


@pytest.mark.parametrize("stops", [(4,), pytest.param((1, 3, 5), marks=pytest.mark.slow)])
def test_interrupted_it_stops_at_the_same_step_with_the_same_bits(train, ended, stops):
    for number, stop in enumerate(stops):
        train("run", *(STOPPING if number == 0 else ()), stop_after=stop, resume=number > 0, code=143)
    assert SAID in train("run", resume=True).stderr
    assert lines("run") == lines(ended)
    for model in ("model", "model-best"):
        assert weights_of(Path("run") / model) == weights_of(ended / model)
    assert Path("run/eval_margins.jsonl").read_bytes() == (ended / "eval_margins.jsonl").read_bytes()


def test_a_signal_in_the_step_in_which_it_stops_leaves_the_export_alone(train, ended, monkeypatch):
    train("run", *STOPPING, stop_after=6, code=143)
    assert not Path("run/model").exists()
    steps = steps_run(monkeypatch)
    train("run", resume=True)
    assert steps == []
    assert lines("run") == lines(ended)
    assert weights_of(Path("run/model")) == weights_of(ended / "model")


def test_a_run_that_stopped_early_is_finished(run, train, monkeypatch):
    before = files(Path("run/model"))
    steps = steps_run(monkeypatch)
    said = train("run", resume=True).stderr
    assert "run is finished: stopped early at step 6 of 12: eval_loss has not fallen" in said
    assert "a larger train.early_stopping_patience lets it go on\n" in said
    shutil.rmtree("run/model")
    train("run", resume=True)
    assert files(Path("run/model")) == before
    assert steps == []


@pytest.mark.slow
def test_a_larger_patience_goes_on_to_the_weights_of_a_run_that_never_stopped(run, train):
    result = train("run", "train.early_stopping_patience=3", resume=True)
    assert "stopped early at step 8 of 12" in result.stderr
    train("run", "train.early_stopping_patience=none", resume=True)
    assert lines("run")[-1]["step"] == 12
    assert "stopped_early" not in json.loads(Path("run/run.json").read_text())["result"]
    train("whole", *STOPPING[:-2])
    assert weights_of(Path("run/model")) == weights_of(Path("whole/model"))


def test_a_patience_that_the_last_step_uses_up_stops_nothing(train):
    result = train("run", *STOPPING, "train.early_stopping_patience=1", "train.max_steps=4")
    assert "stopped early" not in result.stderr
    assert (
        "train.early_stopping_patience = 1 (--set train.early_stopping_patience) has no effect: the run has 4 steps, "
        "and cannot stop before step 4\n"
    ) in result.stderr
    assert "stopped_early" not in json.loads(Path("run/run.json").read_text())["result"]


@pytest.mark.parametrize(
    ("keys", "missing"),
    [
        (("train.best=eval_loss",), "train.eval_steps is not set"),
        (("train.eval_steps=2",), "train.best is not set"),
        ((), "train.best is not set and train.eval_steps is not set"),
    ],
)
def test_early_stopping_needs_a_figure_and_evaluations(cli, keys, missing):
    result = cli("train", "-p", "tiny", "-n", *settings("train.early_stopping_patience=3", *keys))
    assert (result.code, result.stderr) == (
        2,
        "error: [train] early_stopping_patience = 3 needs train.best, the figure that has to get better, and "
        f"train.eval_steps: {missing}\n",
    )


def test_a_threshold_alone_changes_nothing_and_that_is_said(cli, nano_data, nano):
    keys = settings(f"model.pretrained_model_name_or_path={nano}", "train.early_stopping_threshold=0.1")
    result = cli("train", "-p", "tiny", "--data", nano_data, "-n", *keys)
    assert (
        "train.early_stopping_threshold = 0.1 (--set train.early_stopping_threshold) has no effect: "
        "train.early_stopping_patience is not set\n"
    ) in result.stderr
