"""A run on several processes is the run of one: gradients, lines, checkpoints, the exported model."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import nano_run
from nano_run import settings
from ranks import on_ranks
from rmcli.backbones.architectures import BatchChoice
from rmcli.config.resolve import resolve
from rmcli.errors import Stopped
from rmcli.model import optim
from rmcli.parallel import world
from rmcli.parallel.parts import whole
from rmcli.runs import checkpoint
from rmcli.train import job as jobs
from rmcli.train import network as networks
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from rmcli.train.resume import is_run, resumed_job
from rmcli.train.run import run
from support.cli import run_cli
from support.exactness import largest_relative


def train(
    folder: str,
    out: str,
    keys: tuple[str, ...],
    kind: str = "",
    in_float64: bool = False,
    stop: tuple[int, int] = (-1, -1),
) -> dict[str, Any]:
    """`rmcli train` on these processes. Gives the gradients of its first step, before they are clipped.

    `stop` = (rank, step): SIGTERM comes to that process in that step.
    """
    os.chdir(folder)
    size = world.size()
    choose = jobs.choose_batches
    if kind == "single":
        jobs.choose_batches = lambda *arguments: BatchChoice("single", "for a test")
    if is_run(Path(out)):
        job = resumed_job(Path(out), None, None, (), keys, size)
    else:
        job = build_job(resolve("tiny", (), keys), Path("data"), Path(out), processes=size)
    first: dict[str, torch.Tensor] = {}
    clip, names = optim.clip_and_step, ("load_model", "rebuild_network")
    before = {name: getattr(networks, name) for name in names}

    def keeping(network: Any, *arguments: Any) -> Any:
        if not first:
            first.update({name: whole(weight.grad).clone() for name, weight in network.named_parameters()})
        return clip(network, *arguments)

    def stopped_in(self: Trainer, feed: Any) -> Any:
        if (world.rank(), feed.step.number) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(self, feed)

    def doubled(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: make(*arguments, **named).double()

    whole_step, Trainer.run_step = Trainer.run_step, stopped_in
    optim.clip_and_step = keeping
    for name in names if in_float64 else ():
        setattr(networks, name, doubled(before[name]))
    try:
        with pytest.raises(Stopped, match="SIGTERM") if stop[1] > 0 else nullcontext():
            run(job)
    finally:
        Trainer.run_step = whole_step
        optim.clip_and_step, jobs.choose_batches = clip, choose
        for name in names:
            setattr(networks, name, before[name])
    return first


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `data`: 45 groups of two, three and four answers with weights; 16 a step leave 13 in the last."""
    folder = tmp_path_factory.mktemp("processes")
    nano_run.make_model(folder / "dropout")
    model = nano_run.make_model(folder / "nano")
    config = json.loads((model / "config.json").read_text()) | {"attention_dropout": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    rows = [
        {
            "prompt": f"Say {n} " * (1 + n % 7),
            "responses": [f"{n} " * (1 + n % 5), f"{n}", "no", f"no {n}"][: 2 + n % 3],
            "ranks": [1, 2, 3, 4][: 2 + n % 3],
            "weight": 1 + n % 2,
        }
        for n in range(45)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("-p", "tiny", "-o", folder / "data", "--no-audit", "--map-fn", "canonical")
    of_data = settings(f"model.pretrained_model_name_or_path={model}", "data.eval_fraction=0.1", PACKS)
    result = run_cli("prepare", folder / "rows.jsonl", *map(str, options), *of_data)
    assert result.code == 0, result.stderr
    return folder


PACKS = "data.max_packed_length=256"
KEYS = ("train.pairs_per_step=16", "train.max_epochs=1", "train.log_every=1", "train.eval_steps=2", PACKS)
RATES = (*nano_run.RATES, "step_seconds")
WAYS = {
    "replicate": ("parallel.data_parallel=replicate",),
    "shard": ("parallel.data_parallel=shard",),
    "hybrid": ("parallel.data_parallel=shard", "parallel.dp_replicate_size=2"),
}
KINDS = {
    "packed": (),
    "padded": ("model.use_varlen_attn=false", "train.batch_size=3"),
    "single": (),
}


def keys_of(place: Path, *keys: str, model: str = "nano") -> tuple[str, ...]:
    return (f"model.pretrained_model_name_or_path={place / model}", *KEYS, *keys)


def compared(
    place: Path, ranks: int, *keys: str, kind: str = "packed", in_float64: bool
) -> tuple[float, float, float]:
    """Relative distances from one process: of the gradients of step 1, of its figures, of those of all lines."""
    given = keys_of(place, *keys, *KINDS[kind])
    name = "-".join((str(ranks), *keys, kind, str(in_float64))).replace("/", "_")
    alone = tuple(key for key in given if not key.startswith("parallel."))
    expected = train(str(place), f"one-{name}", alone, kind, in_float64)
    several = on_ranks(ranks, train, str(place), f"many-{name}", given, kind, in_float64)
    distance = max(largest_relative(found, expected) for found in several)
    one, many = (nano_run.lines(place / f"{start}-{name}") for start in ("one", "many"))
    assert [line.keys() for line in one] == [line.keys() for line in many]
    lines = [_distance(here, there) for here, there in zip(many, one, strict=True)]
    return distance, lines[0], max(lines)


# Tokens of padded rows are those of how groups are laid together.
def _distance(line: dict[str, Any], other: dict[str, Any]) -> float:
    numbers = [(line[key], other[key]) for key in line if isinstance(line[key], int | float) and key != "tokens"]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in numbers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "way"), [(2, "replicate"), (2, "shard"), (4, "hybrid")])
def test_a_run_is_that_of_one_process(place, ranks, way, kind):
    """In float64, where only the figures in metrics.jsonl, which are float32, round."""
    gradients, first, all_lines = compared(place, ranks, *WAYS[way], kind=kind, in_float64=True)
    assert gradients < 1e-12
    assert first < 1e-6
    assert all_lines < 1e-6


def test_in_float32_only_rounding_differs(place):
    gradients, first, _ = compared(place, 2, *WAYS["shard"], in_float64=False)
    assert gradients < 1e-5
    assert first < 1e-5


EXACT = {
    "replicate": WAYS["replicate"],
    "shard": (*WAYS["shard"], "train.async_checkpoint=true"),
    "8 bits": (*WAYS["shard"], "train.optimizer=adamw_8bit"),
}


@pytest.mark.parametrize("way", EXACT)
def test_two_processes_go_on_bitwise(place, way):
    """With dropout; a signal to one of them stops both after the same step, between two log lines."""
    keys = keys_of(place, *EXACT[way], "train.max_epochs=2", "train.log_every=2", model="dropout")
    on_ranks(2, train, str(place), f"whole-{way}", keys)
    on_ranks(2, train, str(place), f"run-{way}", keys, "", False, (1, 3))
    assert checkpoint.latest(place / f"run-{way}").name == "step-3"
    assert not (place / f"run-{way}" / "model").exists()
    on_ranks(2, train, str(place), f"run-{way}", keys)
    assert nano_run.lines(place / f"run-{way}") == nano_run.lines(place / f"whole-{way}")
    assert nano_run.files(place / f"run-{way}" / "model") == nano_run.files(place / f"whole-{way}" / "model")


def test_other_numbers_of_processes_go_on(place, capfd):
    """1 -> 2 -> 4 -> 1: the same groups a step, so the loss of each step is that of a run on one process."""
    keys = keys_of(place, "train.max_epochs=2", "train.eval_steps=100")
    train(str(place), "one", keys)
    train(str(place), "grown", keys, stop=(0, 1))
    on_ranks(2, train, str(place), "grown", (), "", False, (1, 2))
    on_ranks(4, train, str(place), "grown", (*WAYS["hybrid"],), "", False, (2, 4))
    train(str(place), "grown", ("parallel.data_parallel=auto", "parallel.dp_replicate_size=1"))
    assert "note: 1 processes (was 4): the run goes on, not bitwise" in capfd.readouterr().err
    one, grown = nano_run.lines(place / "one"), nano_run.lines(place / "grown")
    assert [line["step"] for line in one] == [line["step"] for line in grown]
    for step in (2, 3, 5):  # the first after each change
        (a,), (b,) = ([line for line in lines if line["step"] == step and "loss" in line] for lines in (one, grown))
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["pairs"] == a["pairs"]
