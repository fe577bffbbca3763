"""`train.deterministic`: runs that repeat bit by bit, and a process that is as before."""

import json
import os
from pathlib import Path

import torch

from rmcli.model import forward

TINY = ("--preset", "tiny", "-s", "train.max_steps=4", "-s", "train.log_every=1")


def test_deterministic_runs_are_bitwise_equal_and_leave_no_switch_behind(cli, monkeypatch):
    scores, seen = forward.scores, set()

    def spy(*arguments):
        seen.add((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return scores(*arguments)

    monkeypatch.setattr("rmcli.train.loop.scores", spy)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert cli("prepare", "tasks:300", "--preset", "tiny", "-o", "data").code == 0
    for run in ("one", "two"):
        result = cli("train", *TINY, "--data", "data", "-o", run, "-s", "train.deterministic=true")
        assert result.code == 0, result.stderr
    assert seen == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    lines = [
        [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    losses = [[(line.get("loss"), line.get("eval_loss"), line.get("grad_norm")) for line in run] for run in lines]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
    weights = [(Path(run) / "model" / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_without_the_switch_nothing_is_switched(cli, monkeypatch):
    seen = set()
    scores = forward.scores
    monkeypatch.setattr(
        "rmcli.train.loop.scores", lambda *a: (seen.add(torch.are_deterministic_algorithms_enabled()), scores(*a))[1]
    )
    assert cli("prepare", "tasks:200", "--preset", "tiny", "-o", "data").code == 0
    assert cli("train", *TINY, "--data", "data", "-o", "run").code == 0
    assert seen == {False}
