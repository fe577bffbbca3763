"""How a run ends: what is kept when it ends early, what run.json tells, and a warning where it learned nothing."""

import json
import re
import stat
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rmcli.errors import RmcliError
from rmcli.metrics.intervals import wilson_interval
from rmcli.train.collapse import collapse_warning
from rmcli.train.loop import Trainer
from support.cli import train

WAY_ON = "go on with: rmcli train --resume -o run"


def told(run: str) -> dict:
    return json.loads((Path(run) / "run.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("levers", [(), ("model.dtype=bfloat16", "train.master_weights=split")])
def test_a_model_that_cannot_be_exported_is_not_lost(cli, tiny_run, monkeypatch, levers):
    trained = ("train.max_steps=3", *levers)
    assert train(cli, tiny_run.data, "whole", *trained).code == 0

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rmcli.train.run.export", full)
        result = train(cli, tiny_run.data, "run", *trained)
    assert result.code == 1
    assert "cannot write into run: No space left on device; the last checkpoint is run/checkpoints/step-3" in (
        result.stderr
    )
    assert f"hint: is the disk full? {WAY_ON}" in result.stderr
    assert not Path("run/model").exists()
    assert cli("export", "run", "-o", "rescued").code == 0
    whole, rescued = weights(Path("whole/model")), weights(Path("rescued"))
    assert whole.keys() == rescued.keys()
    assert all(torch.equal(whole[name], rescued[name]) for name in whole)
    assert sorted(path.name for path in Path("whole/model").iterdir()) == sorted(
        path.name for path in Path("rescued").iterdir()
    )


def test_without_room_for_the_last_checkpoint_the_model_is_written(cli, tiny_run, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr("rmcli.runs.tensors.save_state", full)
    result = train(cli, tiny_run.data, "run", "train.max_steps=2")
    assert result.code == 0, result.stderr
    told = re.search(
        r"note: cannot write checkpoint run/checkpoints/step-2 of ([\d,]+) bytes: No space", result.stderr
    )
    assert told is not None, result.stderr
    size = int(told[1].replace(",", ""))
    assert 2.9 < size / Path("run/model/model.safetensors").stat().st_size < 3.1  # weights and two states
    assert list(Path("run/checkpoints").iterdir()) == []
    assert Path("run/model/model.safetensors").is_file()


def test_an_error_in_a_later_step_names_the_last_checkpoint(cli, tiny_run, monkeypatch):
    whole = Trainer.run_step

    def failing(self, feed):
        if feed.step.number == 4:
            raise RmcliError("a fault", "mend it.")
        return whole(self, feed)

    monkeypatch.setattr(Trainer, "run_step", failing)
    result = train(cli, tiny_run.data, "run", "train.max_steps=6", "train.save_steps=3")
    assert "error: a fault; the last checkpoint is run/checkpoints/step-3\n" in result.stderr
    assert f"hint: mend it. {WAY_ON}" in result.stderr
    assert told("run")["result"] == {"status": "failed", "error": "a fault"}


def test_ctrl_c_names_what_was_kept(cli, tiny_run, monkeypatch):
    whole = Trainer.run_step

    def interrupted(self, feed):
        if feed.step.number == 5:
            raise KeyboardInterrupt
        return whole(self, feed)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    monkeypatch.setattr("sys.argv", ["/usr/bin/rmcli", "train", "-o", "my run"])
    result = train(cli, tiny_run.data, "run", "train.max_steps=6", "train.save_steps=2")
    assert result.code == 130
    assert f"error: interrupted; the last checkpoint is run/checkpoints/step-4\nhint: {WAY_ON}\n" in result.stderr
    assert told("run")["result"] == {"status": "interrupted"}
    assert told("run")["command"] == "rmcli train -o 'my run'"
    result = train(cli, tiny_run.data, "before", "train.max_steps=6")
    assert (result.code, "error: interrupted; no checkpoint yet\n" in result.stderr) == (130, True)


@pytest.mark.parametrize("name", ["resolved.toml", "run.json"])
def test_a_disk_that_is_full_from_the_start_is_one_line(cli, tiny_run, monkeypatch, name):
    whole = Path.write_text

    def full(self, *arguments, **options):
        if self.name.startswith(name):
            raise OSError(28, "No space left on device")
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    result = train(cli, tiny_run.data, "run", "train.max_steps=2")
    assert result.code == 1
    assert "error: cannot write into run: No space left on device\nhint: is the disk full?\n" in result.stderr


def test_the_working_folder_can_be_the_run_folder_but_not_that_of_data(cli, tiny_run, tmp_path):
    assert train(cli, tiny_run.data, ".", "train.max_steps=1").code == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    result = cli("prepare", "tasks:20", "-p", "tiny", "-o", ".", "--overwrite")
    assert (result.code, "error: . is the folder you are in, or above it" in result.stderr) == (2, True)


def test_score_says_what_a_checkpoint_is(cli, tiny_run):
    step = tiny_run.run / "checkpoints" / "step-120"
    result = cli("score", step, tiny_run.data / "eval.jsonl")
    assert result.code == 2
    assert f"error: model {step} is a checkpoint (weights, optimizer and step), not a model folder" in result.stderr
    assert f"hint: try {tiny_run.model}" in result.stderr


def test_run_json_tells_what_a_run_is_made_of(tiny_run):
    import transformers

    from rmcli import __version__

    record = json.loads((tiny_run.run / "run.json").read_text())
    manifest = json.loads((tiny_run.data / "manifest.json").read_text())
    assert record["data"] == {"folder": str(tiny_run.data), "manifest_sha256": manifest["manifest_sha256"]}
    assert record["versions"] == {
        "rmcli": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert (record["preset"], record["device"]) == ("tiny", "cpu")
    assert record["started"] <= record["ended"]
    assert record["result"]["status"] == "finished"
    assert record["result"]["eval_accuracy"] > 0.6
    assert record["result"]["model"] == str(tiny_run.model)


def test_every_file_of_a_model_folder_has_the_umasks_mode(tiny_run):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tiny_run.model.iterdir()}
    assert len(modes) > 4
    assert set(modes.values()) == {stat.S_IMODE((tiny_run.run / "resolved.toml").stat().st_mode)}


def test_the_end_of_train_says_each_thing_once(cli, tiny_run):
    result = train(cli, tiny_run.data, "run", "train.max_steps=2")
    assert result.stdout == "run/model\n"
    assert result.stderr.count("held-out accuracy 0.") == 1
    last = result.stderr.splitlines()[-1]
    assert last == f"next: rmcli evaluate run/model {tiny_run.data}/eval.jsonl"
    assert result.stderr.count("run/model") == 1


# --- loss and penalty ---


def test_loss_is_the_pairs_part_plus_the_penalty(cli, tiny_run):
    assert train(cli, tiny_run.data, "run", "train.max_steps=4", "train.log_every=1").code == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        prefix = "eval_" if "eval_loss" in line else ""
        parts = line[f"{prefix}pair_loss"] + line[f"{prefix}penalty"]
        assert parts == pytest.approx(line[f"{prefix}loss"], abs=1e-6)
    assert lines[0]["pair_loss"] == pytest.approx(0.693147, abs=1e-5)  # ln 2: a new model's scores are zero
    assert lines[0]["penalty"] == pytest.approx(0.02 * -3.218876, abs=1e-5)  # the barrier's -ln 25


# --- runs that learned nothing ---


def test_a_rate_that_makes_the_weights_run_away_is_warned_of(cli, tiny_run):
    result = train(cli, tiny_run.data, "run", "train.max_steps=6", "train.lr=1e3")
    assert result.code == 0, result.stderr
    assert "note: all held-out scores lie within " in result.stderr
    assert "the model says the same of every answer. Likely causes: train.lr (or train.head_lr) is so high" in (
        result.stderr
    )


def test_a_run_that_learned_is_not_warned_of():
    well = {"step": 20, "accuracy": 0.9, "pairs": 640, "eval_accuracy": 0.8, "eval_margin": 1.0, "eval_pairs": 200}
    assert collapse_warning({**well, "eval_score_min": -1.0, "eval_score_max": 1.0}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_score_max": -0.9995}, "all held-out scores lie within 0.0005 around -1"),
        ({"eval_score_min": -750.3, "eval_score_max": -750.1}, "all held-out scores lie within 0.2 around -750"),
        ({"eval_accuracy": 0.5, "eval_margin": 0.0}, "the two held-out scores of every pair are equal"),
        ({"eval_score_max": float("nan")}, "held-out scores are not finite"),
        ({"eval_accuracy": 0.52}, "0.520 of 200 pairs (0.45 to 0.59 with 95 % confidence), may be chance"),
        ({"eval_accuracy": 0.75, "eval_pairs": 8}, "only 8 pairs are held out, too few to tell"),
    ],
)
def test_a_run_that_learned_nothing_is_warned_of(changes, words):
    well = {"step": 20, "accuracy": 0.9, "pairs": 640, "eval_accuracy": 0.8, "eval_margin": 1.0, "eval_pairs": 200}
    warning = collapse_warning({**well, "eval_score_min": -1.0, "eval_score_max": 1.0, **changes})
    assert warning is not None
    assert words in warning


def test_where_training_is_at_chance_too_nothing_is_said_of_the_pairs_held_out():
    chance = {
        "step": 20,
        "accuracy": 0.51,
        "pairs": 640,
        "eval_accuracy": 0.5,
        "eval_margin": 0.01,
        "eval_pairs": 200,
    }
    assert collapse_warning({**chance, "eval_score_min": -1.0, "eval_score_max": 1.0}) is None


def test_without_pairs_held_out_the_last_window_is_looked_at():
    window = {"step": 20, "accuracy": 0.5, "margin": 0.1, "pairs": 640, "score_min": 0.1, "score_max": 0.1002}
    assert "all scores of the last window lie within 0.0002" in str(collapse_warning(window))
    assert collapse_warning({**window, "step": 1}) is None  # a new head is zero
    assert collapse_warning({**window, "score_max": 1.0}) is None


def test_wilsons_interval():
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
