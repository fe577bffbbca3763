"""Killed at random moments, a run goes on without a human and ends as if it never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nano_run import of_model, settings
from rmcli.runs import checkpoint, folder
from support.places import REPOSITORY


def test_checkpoints_that_a_killed_run_had_no_time_to_remove_go_when_it_goes_on(cli, nano, nano_data, monkeypatch):
    keys = ("train.max_steps=4", "train.save_steps=1", "train.save_total_limit=2", "train.pairs_per_step=16")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rmcli.train.run.export", killed)
        patch.setattr(checkpoint, "remove_older", lambda *_: None)
        line = ("train", "--data", nano_data, "-o", "run", *of_model(nano), *settings(*keys))
        assert cli(*line).code == 130
    assert len(checkpoint.list_checkpoints(Path("run"))) == 4
    assert cli("train", "--resume", "-o", "run").code == 0
    assert [path.name for path in checkpoint.list_checkpoints(Path("run"))] == ["step-3", "step-4"]


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("place", ["rmcli.train.run.write_config", "rmcli.train.loop.Trainer.run_step"])
def test_starts_killed_while_they_clear_what_an_earlier_one_left_end_as_a_run(
    cli, nano, nano_data, monkeypatch, place
):
    """Killed before it had said what it is, or before its first checkpoint; then each start after one removal."""
    keys = ("train.max_steps=2", "train.pairs_per_step=16")
    line = ("train", "--resume", "--data", nano_data, "-o", "run", *of_model(nano), *settings(*keys))
    whole = folder._remove

    def killed(*_, **__):
        raise Killed

    def killed_after(path):
        whole(path)
        raise Killed

    def start(name, replacement) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(name, replacement)
            try:
                assert cli(*line).code == 0
            except Killed:
                return False
        return True

    assert not start(place, killed)
    Path("run/lock").touch()  # as a process that is killed leaves it
    starts = 0
    while not start("rmcli.runs.folder._remove", killed_after):
        starts += 1
        assert starts < 6
    assert starts > 0
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "backbone",
        "checkpoints",
        "eval_margins.jsonl",
        "metrics.json",
        "metrics.jsonl",
        "model",
        "resolved.toml",
        "run.json",
    ]


@pytest.mark.parametrize("left", [("lock",), ("lock", "metrics.jsonl", "run.json.tmp-999999999")])
def test_a_start_killed_before_it_said_what_it_is_is_begun_again(cli, nano, nano_data, left):
    Path("run").mkdir()
    for name in left:
        Path("run", name).touch()
    keys = ("train.max_steps=1", "train.pairs_per_step=16")
    line = ("train", "--resume", "--data", nano_data, "-o", "run", *of_model(nano), *settings(*keys))
    assert cli(*line).code == 0


@pytest.mark.slow  # `python benchmarks/kills.py` kills in 200 runs
def test_killed_runs_end_as_the_one_never_killed_and_leave_nothing(tmp_path):
    script, report = REPOSITORY / "benchmarks" / "kills.py", tmp_path / "kills.json"
    command = [sys.executable, script, "--runs", "18", "--seed", "1", "--output", report]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(report.read_text())
    assert (told["runs"], told["runs_equal"], told["faults"]) == (18, 18, [])
    assert told["kills"] >= 20
    assert 2 * told["kills_inside"] >= told["kills"]
