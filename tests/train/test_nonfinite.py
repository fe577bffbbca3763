"""A loss or gradient norm that is not finite: the step and its rows are named, and the weights stay as they were."""

import json
import math
from pathlib import Path

import pytest
import torch

from rmcli.model.forward import scores
from rmcli.train.loop import Trainer
from rmcli.train.nonfinite import rows_named
from support.cli import train


@pytest.fixture
def broken_in(monkeypatch):
    """`broken_in(3, 5)`: scores of these forwards, counted from 1, are NaN."""

    def breaking(*numbers: int):
        calls = []

        def broken(network, batch, dtype="auto"):
            calls.append(1)
            values = scores(network, batch, dtype)
            return values * float("nan") if len(calls) in numbers else values

        monkeypatch.setattr("rmcli.train.loop.scores", broken)

    return breaking


def metrics(run: str) -> list[dict]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def test_a_step_left_out_leaves_only_its_count(cli, nano_data, broken_in, monkeypatch):
    weights = []
    whole = Trainer.run_step

    def watched(self, feed):
        result = whole(self, feed)
        weights.append(torch.cat([weight.detach().flatten() for weight in self.network.parameters()]))
        return result

    monkeypatch.setattr(Trainer, "run_step", watched)
    broken_in(3)
    keys = ("train.max_steps=6", "train.pairs_per_step=4", "train.log_every=6", "train.nonfinite=skip")
    result = train(cli, nano_data, "run", *keys)
    assert result.code == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if "not finite" in line]
    assert len(said) == 1
    assert said[0].startswith("note: loss or gradient of step 3 is not finite (rows ")
    assert said[0].endswith("): left out, 1 of at most 10")
    assert torch.equal(weights[2], weights[1])
    assert not torch.equal(weights[3], weights[2])
    first, last = (line for line in metrics("run") if "loss" in line)
    assert (first["step"], first["skipped_steps"], last["step"], last["skipped_steps"]) == (1, 0, 6, 1)
    assert last["pairs"] == 4 * 4  # of steps 2, 4, 5 and 6
    assert all(math.isfinite(value) for value in last.values())


def test_a_run_of_them_stops(cli, nano_data, broken_in):
    broken_in(2, 3, 4)
    keys = ("train.max_steps=6", "train.pairs_per_step=4", "train.nonfinite=skip", "train.max_skipped=2")
    result = train(cli, nano_data, "run", *keys)
    assert result.code == 1
    assert "error: loss or gradient of step 4 is not finite (rows " in result.stderr
    assert "): more than train.max_skipped = 2 such steps\n" in result.stderr


def test_what_was_left_out_is_counted_on_after_a_stop(cli, nano_data, broken_in):
    broken_in(2)
    keys = ("train.max_steps=3", "train.pairs_per_step=4", "train.nonfinite=skip", "train.max_skipped=1")
    assert train(cli, nano_data, "run", *keys).code == 0
    broken_in(1)
    result = cli("train", "--resume", "-o", "run", "-s", "train.max_steps=6")
    assert result.code == 1
    assert "of step 4 is not finite" in result.stderr
    assert "more than train.max_skipped = 1 such steps" in result.stderr


def test_nothing_is_saved_after_a_step_that_is_not_finite(cli, nano_data, broken_in):
    """The flag of the step itself is read before its checkpoint is written."""
    broken_in(2)
    keys = ("train.max_steps=6", "train.pairs_per_step=4", "train.save_steps=1")
    result = train(cli, nano_data, "run", *keys)
    assert result.code == 1
    assert "error: loss or gradient of step 2 is not finite" in result.stderr
    assert "; the last checkpoint is run/checkpoints/step-1\n" in result.stderr


def test_rows_are_named_by_source_and_number():
    sources = [{"source": "a.jsonl", "in": 3}, {"source": "b.jsonl", "in": 10}]
    manifest = {"rows_by_source": sources, "shard": None}
    assert rows_named([0, 2, 3, 12], manifest) == "rows 1 of a.jsonl, 3 of a.jsonl, 1 of b.jsonl, 10 of b.jsonl"
    assert rows_named(range(10), manifest).endswith("5 of b.jsonl and 2 more")
    assert rows_named([5], {**manifest, "shard": "1/2"}) == "input rows 5"
    assert rows_named([5], {}) == "input rows 5"
