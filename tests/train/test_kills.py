"""Killed at random moments, a run goes on without a human and ends as if it never was."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nano_run import of_model, settings
from rmcli.runs import checkpoint
from support.places import REPOSITORY


def test_checkpoints_that_a_killed_run_had_no_time_to_remove_go_when_it_goes_on(cli, nano, nano_data, monkeypatch):
    keys = ("train.max_steps=4", "train.save_steps=1", "train.save_total_limit=2", "train.pairs_per_step=16")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rmcli.train.run.export", killed)
        patch.setattr(checkpoint, "remove_older", lambda *_: None)
        line = ("train", "--data", nano_data, "-o", "run", *of_model(nano), *settings(*keys))
        assert cli(*line).code == 130
    assert len(checkpoint.list_checkpoints(Path("run"))) == 4
    assert cli("train", "--resume", "-o", "run").code == 0
    assert [path.name for path in checkpoint.list_checkpoints(Path("run"))] == ["step-3", "step-4"]


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
