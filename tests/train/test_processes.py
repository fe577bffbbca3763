"""A run on several processes is the run of one: gradients, lines, checkpoints, the exported model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nano_run
from nano_run import settings
from ranks import on_ranks
from rmcli.config.resolve import resolve
from rmcli.model import optim
from rmcli.parallel import world
from rmcli.parallel.parts import whole
from rmcli.train import network as networks
from rmcli.train.job import build_job
from rmcli.train.resume import is_run, resumed_job
from rmcli.train.run import run
from support.cli import run_cli
from support.exactness import largest_relative


def train(folder: str, out: str, keys: tuple[str, ...], in_float64: bool = False) -> dict[str, Any]:
    """`rmcli train` on these processes. Gives the gradients of its first step, before they are clipped."""
    os.chdir(folder)
    size = world.size()
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

    def doubled(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: make(*arguments, **named).double()

    optim.clip_and_step = keeping
    for name in names if in_float64 else ():
        setattr(networks, name, doubled(before[name]))
    try:
        run(job)
    finally:
        optim.clip_and_step = clip
        for name in names:
            setattr(networks, name, before[name])
    return first


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `data`: 45 groups of two, three and four answers with weights; 16 a step leave 13 in the last."""
    folder = tmp_path_factory.mktemp("processes")
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


PACKS = "data.max_packed_length=512"
KEYS = ("train.pairs_per_step=16", "train.max_epochs=2", "train.log_every=1", "train.eval_steps=2", PACKS)
RATES = (*nano_run.RATES, "step_seconds")
WAYS = {
    "replicate": ("parallel.data_parallel=replicate",),
    "shard": ("parallel.data_parallel=shard",),
    "hybrid": ("parallel.data_parallel=shard", "parallel.dp_replicate_size=2"),
}
KINDS = {
    "packed": ("train.pairs_per_step=16",),
    "several packs": ("train.pairs_per_step=16", "data.max_packed_length=256"),
    "single": ("model.use_varlen_attn=true",),
    "padded": ("model.use_varlen_attn=false", "train.batch_size=3"),
}


def keys_of(place: Path, *keys: str) -> tuple[str, ...]:
    return (f"model.pretrained_model_name_or_path={place / 'nano'}", *KEYS, *keys)


def compared(place: Path, ranks: int, *keys: str, in_float64: bool = False) -> tuple[float, float]:
    """Relative distances of the gradients of step 1, and of all figures of all lines, from those of one process."""
    given = keys_of(place, *keys)
    name = f"{abs(hash((ranks, keys, in_float64)))}"
    alone_keys = tuple(key for key in given if not key.startswith("parallel."))
    expected = train(str(place), f"one-{name}", alone_keys, in_float64)
    several = on_ranks(ranks, train, str(place), f"many-{name}", given, in_float64)
    distance = max(largest_relative(found, expected) for found in several)
    one, many = (nano_run.lines(place / f"{start}-{name}") for start in ("one", "many"))
    assert [line.keys() for line in one] == [line.keys() for line in many]
    figures = max(
        abs(a - b) / max(abs(b), 1e-3)
        for here, there in zip(many, one, strict=True)
        for a, b in zip(here.values(), there.values(), strict=True)
        if isinstance(a, int | float)
    )
    return distance, figures


@pytest.mark.parametrize(("ranks", "way"), [(2, "replicate"), (2, "shard"), (4, "hybrid")])
def test_a_run_is_that_of_one_process(place, ranks, way):
    distance, figures = compared(place, ranks, *WAYS[way])
    assert distance < 1e-5
    assert figures < 1e-3
