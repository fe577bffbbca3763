"""A run on several processes is the run of one: gradients, lines, checkpoints, the exported model."""

import hashlib
import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import nano_run
from nano_run import settings
from rmcli.backbones.architectures import BatchChoice
from rmcli.config.presets import presets_folder
from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError, RmcliError, Stopped
from rmcli.model import optim
from rmcli.parallel import world
from rmcli.parallel.mesh import MeshShape
from rmcli.parallel.parts import own_part, whole
from rmcli.runs import checkpoint
from rmcli.train import job as jobs
from rmcli.train import loop
from rmcli.train import network as networks
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from rmcli.train.resume import is_run, resumed_job
from rmcli.train.run import run
from rmcli.train.same import agreed, check_same_options
from support.cli import run_cli
from support.exactness import largest_relative
from support.ranks import on_ranks


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


DEFAULT = {(2, "shard", "packed"), (2, "shard", "single"), (2, "replicate", "padded"), (4, "hybrid", "packed")}


@pytest.mark.parametrize(
    ("ranks", "way", "kind"),
    [
        pytest.param(ranks, way, kind, marks=() if (ranks, way, kind) in DEFAULT else pytest.mark.slow)
        for ranks, way in [(2, "replicate"), (2, "shard"), (4, "hybrid")]
        for kind in KINDS
    ],
)
def test_a_run_is_that_of_one_process(place, ranks, way, kind):
    """In float64, where only the figures in metrics.jsonl, which are float32, round."""
    gradients, first, all_lines = compared(place, ranks, *WAYS[way], kind=kind, in_float64=True)
    assert gradients < 1e-12
    assert first < 1e-6
    assert all_lines < 1e-6


ROWS = {
    "shared by two": (2, ("parallel.sequence_parallel_size=2", *WAYS["replicate"])),
    "two by two": (4, ("parallel.sequence_parallel_size=2", *WAYS["shard"])),
    "shared by four": (4, ("parallel.sequence_parallel_size=4", *WAYS["hybrid"], "model.trim_last_layer=false")),
}


@pytest.mark.parametrize(
    "rows", ["two by two", *(pytest.param(rows, marks=pytest.mark.slow) for rows in ROWS if rows != "two by two")]
)
def test_processes_that_share_rows_are_one(place, rows):
    """transformers' RMSNorm computes in float32 even in a float64 model: each cut of a row rounds otherwise."""
    ranks, keys = ROWS[rows]
    gradients, first, all_lines = compared(place, ranks, *keys, in_float64=True)
    assert gradients < 1e-5
    assert first < 1e-5
    assert all_lines < 1e-3


def test_in_float32_only_rounding_differs(place):
    gradients, first, _ = compared(place, 2, *WAYS["shard"], in_float64=False)
    assert gradients < 1e-5
    assert first < 1e-5


EXACT = {
    "replicate": WAYS["replicate"],
    "shard": (*WAYS["shard"], "train.async_checkpoint=true"),
    "8 bits": (*WAYS["shard"], "train.optimizer=adamw_8bit"),
}


@pytest.mark.parametrize(
    "way", ["8 bits", *(pytest.param(way, marks=pytest.mark.slow) for way in EXACT if way != "8 bits")]
)
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
    assert "note: number of processes 1 (was 4): the run goes on, not bitwise" in capfd.readouterr().err
    one, grown = nano_run.lines(place / "one"), nano_run.lines(place / "grown")
    assert [line["step"] for line in one] == [line["step"] for line in grown]
    for step in (2, 3, 5):  # the first after each change
        (a,), (b,) = ([line for line in lines if line["step"] == step and "loss" in line] for lines in (one, grown))
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        assert b["pairs"] == a["pairs"]


def train_with_a_bad_loss(folder: str, out: str, keys: tuple[str, ...]) -> tuple[str, bool]:
    """The loss of step 2 is infinite on the last process alone: what is said, and whether its weights stayed."""
    before: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.nn.Parameter] = {}
    own, clip = loop.objective, optim.clip_and_step
    steps = [0]

    def infinite(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pairs, penalty = own(*arguments)
        is_last = world.rank() == world.size() - 1
        return (pairs + float("inf") if is_last and steps[0] == 1 else pairs), penalty

    def watched(network: Any, *arguments: Any) -> Any:
        weights.update(network.named_parameters())
        steps[0] += 1
        if steps[0] == 2:
            before.update({name: own_part(weight.detach()).clone() for name, weight in weights.items()})
        return clip(network, *arguments)

    loop.objective, optim.clip_and_step = infinite, watched
    try:
        train(folder, out, keys)
        said = ""
    except RmcliError as error:
        said = error.message
    finally:
        loop.objective, optim.clip_and_step = own, clip
    return said, all(torch.equal(own_part(weights[name]), part) for name, part in before.items())


@pytest.mark.parametrize("way", ["replicate", "shard"])
def test_a_loss_that_is_infinite_on_one_process_moves_no_weight_on_any(place, way):
    keys = keys_of(place, *WAYS[way])
    for said, stayed in on_ranks(2, train_with_a_bad_loss, str(place), f"bad-{way}", keys):
        assert said.startswith("loss or gradient of step 2 is not finite (rows ")
        assert stayed


def hashes_of_weights(folder: str, out: str, keys: tuple[str, ...]) -> str:
    found: list[str] = []
    fit = Trainer.fit

    def hashed(self: Trainer, *arguments: Any) -> Any:
        summary = fit(self, *arguments)
        digest = hashlib.sha256()
        for weight in self.network.parameters():
            digest.update(own_part(weight.detach()).contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
        return summary

    Trainer.fit = hashed
    try:
        train(folder, out, keys)
    finally:
        Trainer.fit = fit
    return found[0]


def test_copies_of_the_weights_stay_bitwise_the_same(place):
    first, second = on_ranks(2, hashes_of_weights, str(place), "hashed", keys_of(place, *WAYS["replicate"]))
    assert first == second


@pytest.mark.parametrize(
    ("processes", "keys", "message"),
    [
        (
            4,
            ("parallel.sequence_parallel_size=3",),
            "parallel.sequence_parallel_size = 3 does not divide the 4 processes",
        ),
        (2, ("parallel.dp_replicate_size=4",), "parallel.dp_replicate_size = 4 does not divide the 2 processes"),
        (1, ("parallel.data_parallel=shard",), "parallel.data_parallel = 'shard' on one process"),
        (2, ("train.master_weights=split", "model.dtype=bfloat16"), "train.master_weights = 'split' on 2 processes"),
        (
            2,
            ("parallel.sequence_parallel_size=2", "model.use_varlen_attn=false"),
            "shares packed rows, and model.use",
        ),
    ],
)
def test_what_processes_cannot_have_is_one_line(place, monkeypatch, processes, keys, message):
    monkeypatch.chdir(place)
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_job(resolve("tiny", (), keys_of(place, *keys)), Path("data"), Path("none"), processes=processes)


def test_dropout_and_shared_rows_do_not_go_together(place, monkeypatch):
    monkeypatch.chdir(place)
    keys = keys_of(place, "parallel.sequence_parallel_size=2", model="dropout")
    with pytest.raises(ConfigError, match=r"config.json has attention_dropout = 0.2"):
        build_job(resolve("tiny", (), keys), Path("data"), Path("none"), processes=2)


def test_another_number_is_refused_where_steps_depend_on_it(place, monkeypatch):
    packs = place / "packs.toml"
    toml = (presets_folder() / "tiny.toml").read_text().replace("pairs_per_step = 64\n", "")
    packs.write_text(toml.replace('"checkable_tasks"', '"canonical"'))
    keys = tuple(key for key in keys_of(place) if "pairs_per_step" not in key)
    monkeypatch.chdir(place)
    job = build_job(resolve(None, (packs,), keys), Path("data"), Path("by-packs"))
    run(job)
    with pytest.raises(ConfigError, match=r"2 data-parallel processes, but .*step-\d+ was trained on 1: a step is"):
        resumed_job(Path("by-packs"), None, None, (), (), 2)


def test_auto_cuts_weights_where_a_copy_does_not_fit(place, monkeypatch):
    monkeypatch.chdir(place)
    roomy = build_job(resolve("tiny", (), keys_of(place)), Path("data"), Path("none"), processes=2)
    assert roomy.spread.mesh == MeshShape(2, 1)
    assert re.fullmatch(
        r"the whole model needs about \d\.\d\d GiB a process, and \d+\.\d\d GiB are free", roomy.spread.reason
    )
    assert roomy.spread.told == f"2 processes, weights replicated: {roomy.spread.reason}"
    monkeypatch.setattr(jobs, "free_memory", lambda device, processes: roomy.memory.total - 1)
    tight = build_job(resolve("tiny", (), keys_of(place)), Path("data"), Path("none"), processes=2)
    assert tight.spread.mesh == MeshShape(1, 2)
    assert tight.memory.total < roomy.memory.total


def train_where_the_folder_is_another(folder: str, keys: tuple[str, ...]) -> str:
    """The second process sees a run folder of its own, as on a machine without a shared file system."""
    job = build_job(
        resolve("tiny", (), keys), Path(folder, "data"), Path(folder, f"apart-{world.rank()}"), processes=2
    )
    job.run_folder.mkdir()
    try:
        networks.network_of(job)
    except RmcliError as error:
        return error.message
    return ""


def test_a_run_folder_that_not_all_see_is_said(place):
    first, second = on_ranks(2, train_where_the_folder_is_another, str(place), keys_of(place))
    assert "apart-1 is not on " in second
    assert first


def test_several_processes_compute_in_bfloat16(place, capfd):
    """The self-test is in float32 first; then step 1 is that of one process but for rounding."""
    keys = keys_of(place, "model.dtype=bfloat16")
    train(str(place), "one-bfloat16", keys)
    on_ranks(2, train, str(place), "two-bfloat16", (*keys, *WAYS["shard"]))
    (first, *_), (there, *_) = nano_run.lines(place / "two-bfloat16"), nano_run.lines(place / "one-bfloat16")
    assert first["loss"] == pytest.approx(there["loss"], rel=1e-5)  # of a zero head
    assert first["grad_norm"] == pytest.approx(there["grad_norm"], rel=0.03)
    told = json.loads((place / "two-bfloat16" / "model" / "config.json").read_text())
    assert told["dtype"] == "float32"


def decided(place: str, keys: tuple[str, ...], room: list[int]) -> tuple[int, int]:
    """How `auto` lays weights where processes have so much room, each its own."""
    own, jobs.free_memory = jobs.free_memory, lambda device, processes: room[world.rank()]
    try:
        job = build_job(resolve("tiny", (), keys), Path(place, "data"), Path(place, "none"), processes=2)
    finally:
        jobs.free_memory = own
    job = agreed(job)
    return job.spread.mesh.shard, job.memory.total


def test_where_one_process_has_too_little_room_all_cut(place):
    keys = keys_of(place)
    roomy = on_ranks(2, decided, str(place), keys, [2**40, 2**40])
    assert {shard for shard, _ in roomy} == {1}
    first, second = on_ranks(2, decided, str(place), keys, [2**40, 1])
    assert first == second
    assert first[0] == 2


def started_with(data: str | None) -> str:
    try:
        check_same_options(data=data is not None if world.rank() else True, resume=False)
    except RmcliError as error:
        return error.message
    return ""


def test_options_that_only_one_was_given_are_said(place):
    first, second = on_ranks(2, started_with, None)
    assert first == "--data given is True on process 0 and False on process 1"
    assert second


SHARED = {"shard": WAYS["shard"], "shared rows": ("parallel.sequence_parallel_size=2", *WAYS["replicate"])}


@pytest.mark.slow
@pytest.mark.parametrize("way", SHARED)
def test_sets_are_evaluated_and_a_run_stops_early_as_on_one_process(place, way):
    """Each comparison counts once, in one order; a run that was interrupted stops where it would have, bit by bit."""
    stopping = (
        "train.best=eval_all_log_loss",
        "train.early_stopping_patience=1",
        "train.early_stopping_threshold=9.0",
    )
    sets = f"eval.sets=[{{name='all',path='{place / 'data'}',split='train'}}]"
    keys = keys_of(place, sets, *stopping, "train.max_epochs=3")
    name = way.replace(" ", "-")
    train(str(place), f"early-one-{name}", keys)
    on_ranks(2, train, str(place), f"early-two-{name}", (*keys, *SHARED[way]))
    one, two = (nano_run.lines(place / f"early-{number}-{name}") for number in ("one", "two"))
    assert [(line["step"], line.keys()) for line in one] == [(line["step"], line.keys()) for line in two]
    assert one[-1]["step"] == 4  # of 9
    margins = [_margins(place / f"early-{number}-{name}") for number in ("one", "two")]
    assert [{**one, "margin": 0} for one in margins[0]] == [{**one, "margin": 0} for one in margins[1]]
    for here, there in zip(*margins, strict=True):
        assert here["margin"] == pytest.approx(there["margin"], abs=1e-4)
    on_ranks(2, train, str(place), f"early-{name}", (*keys, *SHARED[way]), "", False, (1, 3))
    on_ranks(2, train, str(place), f"early-{name}", ())
    assert nano_run.lines(place / f"early-{name}") == two
    assert _margins(place / f"early-{name}") == margins[1]


def _margins(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval_margins.jsonl").read_text().splitlines()]
