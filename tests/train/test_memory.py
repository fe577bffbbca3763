"""The estimate of memory against measured peaks, what is said to fit, and what is said where memory runs short."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.model.memory import estimate
from rmcli.parallel.mesh import MeshShape
from rmcli.train import memory
from rmcli.train.job import Job, build_job
from rmcli.train.loop import Trainer
from rmcli.train.saver import Saver
from support.cli import as_options
from support.places import REPOSITORY

MIB = 2**20
PARTS = ("weights", "gradients", "states", "activations", "other")


def dry_run(cli, data: Path, *settings: str) -> dict:
    options = as_options(*settings)
    result = cli("train", "-p", "tiny", "--data", data, "--dry-run", "--json", *options)
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)["plan"]


def job_of(data: Path, *settings: str) -> Job:
    return build_job(resolve("tiny", settings=settings), data, Path("run"))


def leave(monkeypatch, room: float) -> None:
    for place in ("memory", "describe"):
        monkeypatch.setattr(f"rmcli.train.{place}.free_memory", lambda device, processes: int(room))


def test_dry_run_shows_what_memory_is_for(cli, tiny_run):
    plan = dry_run(cli, tiny_run.data)
    assert sum(plan[f"memory_{part}_gib"] for part in PARTS) == pytest.approx(plan["memory_need_gib"], abs=0.01)
    assert plan["memory_states_gib"] == round(8 * plan["parameters"] / 2**30, 3)
    assert plan["tokens_per_forward"] == 2048
    assert plan["memory_fits"].startswith("data.max_packed_length up to ")


def test_the_largest_forward_that_is_said_to_fit_does(cli, tiny_run, monkeypatch):
    job = job_of(tiny_run.data)
    room = (job.memory.total - job.memory.activations) + job.memory.activations // 2
    assert memory.what_fits(job, room) == "data.max_packed_length up to 1,024"
    leave(monkeypatch, room)
    assert dry_run(cli, tiny_run.data)["memory_fits"] == memory.what_fits(job, room)
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "-o", "run")
    assert result.code == 1
    assert (
        f"hint: what would fit: {memory.what_fits(job, room)}; train.check_memory=false tries anyway" in result.stderr
    )


def test_padded_rows_are_told_a_batch_size(tiny_run):
    job = job_of(tiny_run.data, "model.use_varlen_attn=false", "train.batch_size=8")
    room = job.memory.total - job.memory.activations // 2
    assert memory.what_fits(job, room).startswith("train.batch_size up to 4")


@pytest.mark.parametrize(
    ("settings", "way"),
    [
        ((), {"optimizer": "adamw_8bit"}),
        (("model.dtype=bfloat16",), {"master_weights": "split"}),
        (("model.dtype=bfloat16",), {"master_weights": "split", "optimizer": "adamw_8bit"}),
    ],
)
def test_settings_that_would_fit_are_named(tiny_run, wide, settings, way):
    """In a network whose weights, not its activations, are what does not fit."""
    settings = (*settings, f"model.pretrained_model_name_or_path={wide}")
    job = job_of(tiny_run.data, *settings)
    keys = [f"train.{key}={value}" for key, value in way.items()]
    fitting = job_of(tiny_run.data, *settings, *keys).memory.total
    assert f"{' with '.join(keys)} (" in memory.what_fits(job, fitting)
    less = memory.what_fits(job, fitting - MIB)
    assert f"{' with '.join(keys)} (" not in less


def test_what_no_setting_lets_fit_needs_a_smaller_backbone(tiny_run):
    assert memory.what_fits(job_of(tiny_run.data), MIB) == "a smaller backbone: no setting makes this one fit"


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """The tiny tokenizer's own backbone with 25 million weights."""
    return shape(tmp_path_factory.mktemp("wide"), hidden_size=1024, intermediate_size=2048, num_hidden_layers=2)


def shape(folder: Path, **changes: int) -> Path:
    tiny = REPOSITORY / "presets" / "tiny"
    for path in tiny.glob("tokenizer*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("levers", [(), ("train.optimizer=adamw_8bit", "train.master_weights=split")])
def test_the_copies_of_a_checkpoint_written_beside_are_counted(cli, tiny_run, monkeypatch, levers):
    whole, found = Saver.save, []

    def save(self, tensors, write):
        def counting(copies, group):
            found.append(sum(copy.numel() * copy.element_size() for copy in copies.values()))
            return write(copies, group)

        whole(self, tensors, counting)

    monkeypatch.setattr(Saver, "save", save)
    levers = ("model.dtype=bfloat16", *levers)
    job, beside = job_of(tiny_run.data, *levers), job_of(tiny_run.data, *levers, "train.async_checkpoint=true")
    options = as_options(*levers, "train.async_checkpoint=true")
    assert cli("train", "-p", "tiny", "--data", tiny_run.data, "-s", "train.max_steps=1", *options).code == 0
    (copied,) = found
    assert 0 <= copied - (beside.memory.total - job.memory.total) < 6000  # the generator's state, numbers of steps
    assert memory.what_fits(beside, job.memory.total).endswith(
        f", or train.async_checkpoint=false ({memory.gib(job.memory.total)})"
    )


# --- memory that runs short ---


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
    ],
)
def test_a_forward_too_large_is_told_its_size_what_helps_and_what_is_kept(cli, tiny_run, monkeypatch, error):
    whole, calls = Trainer.run_step, []

    def run_step(self, feed):
        calls.append(feed.forwards[0].batch.num_tokens)
        if feed.step.number == 3:
            monkeypatch.setattr("rmcli.train.loop.scores", failing)
        return whole(self, feed)

    def failing(*_):
        raise error

    monkeypatch.setattr(Trainer, "run_step", run_step)
    settings = ("-s", "train.max_steps=4", "-s", "train.save_steps=2")
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "-o", "run", *settings)
    assert result.code == 1
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert said.startswith(f"error: out of memory on cpu in step 3, at a forward of {calls[2]:,} tokens (the run's")
    assert said.endswith("; the last checkpoint is run/checkpoints/step-2")
    ways = memory.what_helps_most(job_of(tiny_run.data))
    assert [next(iter(way.settings)) for way in ways] == [
        "data.max_packed_length",
        "train.activation_checkpointing",
        "train.optimizer",
    ][: len(ways)]
    assert f"hint: what would need less, by the estimate: {ways[0]}, {ways[1]}" in result.stderr
    assert len(calls) == 3  # nothing was tried again


@pytest.mark.parametrize("where", ["rmcli.train.network.load_model", "rmcli.model.optim.clip_and_step"])
def test_memory_that_runs_short_elsewhere_is_one_line_too(cli, tiny_run, monkeypatch, where):
    def failing(*_):
        raise MemoryError

    monkeypatch.setattr(where, failing)
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "-o", "run")
    assert result.code == 1
    assert (
        "error: out of memory on cpu (the run's largest forward has 2,048 tokens): an object could" in result.stderr
    )


def test_settings_that_help_are_three_and_the_best_first(tiny_run, wide):
    job = job_of(tiny_run.data, f"model.pretrained_model_name_or_path={wide}", "model.dtype=bfloat16")
    ways = memory.what_helps_most(job)
    assert len({key for way in ways for key in way.settings}) == 3
    needs = [way.memory.total for way in ways]
    assert needs == sorted(needs)
    assert needs[-1] < job.memory.total


# --- the estimate against what was measured ---

SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
}
MID_SIZE = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "packed_length", "settings"),
    [
        ({}, 2048, ()),
        (SMOLLM2_135M, 512, ("train.optimizer=adamw_8bit", "train.activation_checkpointing=full")),
        (SMOLLM2_135M, 1024, ()),
        (MID_SIZE, 2048, ("train.activation_checkpointing=full",)),
    ],
)
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(cli, tmp_path, changes, packed_length, settings):
    (tmp_path / "model").mkdir()
    prepared = cli(
        "prepare", "tasks:100", "-p", "tiny", "-o", "data", "-s", f"data.max_packed_length={packed_length}"
    )
    assert prepared.code == 0, prepared.stderr
    run = ("train.max_steps=2", "train.pairs_per_step=none", "train.check_memory=false")
    model = f"model.pretrained_model_name_or_path={shape(tmp_path / 'model', **changes)}"
    child = REPOSITORY / "tests" / "support" / "memory_child.py"
    answer = subprocess.run(
        [sys.executable, child, "data", "run", model, *run, *settings],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    measured = json.loads(answer.stdout.splitlines()[-1])
    assert measured["estimate"] == pytest.approx(measured["peak"], rel=0.25), measured


def test_main_memory_must_hold_the_base_that_adapters_lie_beside(tiny_run, monkeypatch):
    """Of a GPU's run, too: the base is read, and merged with them, there."""
    job = replace(job_of(tiny_run.data, "lora.r=4"), device=torch.device("cuda"))
    monkeypatch.setattr(memory, "free_memory", lambda device, processes: 2**40)
    need = 4 * job.memory.num_parameters
    monkeypatch.setattr("rmcli.model.limits.host_memory", lambda: need)
    memory.check_memory(job)
    monkeypatch.setattr("rmcli.model.limits.host_memory", lambda: need - 1)
    with pytest.raises(RmcliError, match="not enough main memory: the base model is read in float32"):
        memory.check_memory(job)


def test_a_base_that_is_cut_over_processes_is_whole_on_none_of_them(tiny_run):
    job = job_of(tiny_run.data, "lora.r=4")
    assert job.memory.start > 4 * job.memory.num_parameters - 1
    cut = estimate(job.memory.sizes, job.config, job.memory.tokens, True, MeshShape(1, 8))
    assert cut.start == 0
