"""What the habits of the loop bring: each left out in turn, against `rmcli train` as it is.

    python benchmarks/loop.py --output loop.json

`fused`: AdamW in one kernel; without: torch's default. `ahead`: a thread builds the next steps' batches; without:
each is built when its step begins. `no_gc`: Python's collector is kept out of steps; without: it runs when it likes.
`no_sync`: nothing in a step waits for the device; without: loss and gradient norm are read in every step, as a
progress bar that shows them does.

All runs take the same steps in one process, in turn, round after round; what is compared is the time from the end of
the warm-up to the end of the last step, the device's queue drained, and the ratio is the median over rounds. Losses
of the first three steps must be equal, but for `fused`, which rounds otherwise.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import transformers

import figures
import material
import rmcli
import train
from rmcli.config.resolve import resolve
from rmcli.model import optim
from rmcli.train import loop
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from rmcli.train.run import run as train_run

AS_IS = "rmcli"
TOLERANCE = {"fused": 1e-5}  # of the first three steps' losses (later, AdamW magnifies rounding); others are equal


def read_each_step(network: Any, optimizer: Any, max_norm: float, loss: torch.Tensor) -> Any:
    norm, skipped = _clip_and_step(network, optimizer, max_norm, loss)
    float(loss), float(norm)
    return norm, skipped


class DefaultAdamW(torch.optim.AdamW):
    """Not fused. It knows no flag that leaves a step out."""

    def __init__(self, *arguments: Any, fused: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)

    def step(self, closure: Any = None) -> Any:
        self.found_inf = None
        return super().step(closure)


_clip_and_step = optim.clip_and_step


def one_by_one(build: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """A generator, as `ahead` is: the loop closes it."""
    yield from map(build, items)


WITHOUT: dict[str, Callable[[], Any]] = {
    "fused": lambda: mock.patch.object(torch.optim, "AdamW", DefaultAdamW),
    "ahead": lambda: mock.patch.object(loop, "ahead", one_by_one),
    "no_gc": lambda: mock.patch.object(loop, "_no_garbage_collection", nullcontext),
    "no_sync": lambda: mock.patch.object(optim, "clip_and_step", read_each_step),
}


class Timed(Trainer):
    """The real trainer, which notes when the warm-up is over and when all is done."""

    warmup = 0
    seconds = 0.0
    losses: tuple[torch.Tensor, ...] = ()

    def run_step(self, feed: Any) -> Any:
        skipped = super().run_step(feed)
        if feed.row_ids:
            Timed.losses += (self.window.losses[-1][0],)
        if feed.step.number in (self.warmup, self.job.total_steps):
            if self.job.device.type == "cuda":
                torch.cuda.synchronize()
            Timed.seconds = perf_counter() - Timed.seconds
        return skipped


@contextmanager
def without(name: str) -> Iterator[None]:
    with nullcontext() if name == AS_IS else WITHOUT[name]():
        yield


def run(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[float, list[float]]:
    """Seconds of the timed steps, and the losses of all."""
    Timed.warmup, Timed.seconds, Timed.losses = arguments.warmup, 0.0, ()
    resolved = resolve(arguments.preset, settings=train.our_settings(arguments, folder / "model"))
    with without(name), mock.patch("rmcli.train.run.Trainer", Timed):
        train_run(build_job(resolved, folder / "data", folder / "run"))
    shutil.rmtree(folder / "run")
    return Timed.seconds, [float(loss) for loss in Timed.losses]


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    made = train.make_material(arguments, folder)
    seconds: dict[str, list[float]] = {name: [] for name in (AS_IS, *WITHOUT)}
    expected: list[float] = []
    apart = dict.fromkeys(WITHOUT, 0.0)
    for number in range(1, arguments.rounds + 1):
        for name in seconds:
            taken, losses = run(name, arguments, folder)
            seconds[name].append(taken)
            expected = expected or losses
            differences = [abs(a - b) for a, b in zip(losses, expected, strict=True)]
            if max(differences[:3]) > TOLERANCE.get(name, 0.0):
                raise ValueError(f"{name}: losses differ by {max(differences[:3])}")
            if name != AS_IS:
                apart[name] = max(apart[name], *differences)
        train.say(f"round {number}: " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items()))
    return figures.heading(
        "loop.py",
        model=arguments.model_config or Path(arguments.model or material.GGUF).name,
        layers=None if arguments.model_config else arguments.layers,
        material=made,
        device=arguments.device,
        device_name=train.device_name(arguments),
        pairs_per_step=arguments.pairs_per_step,
        steps=arguments.steps,
        warmup=arguments.warmup,
        versions={
            "rmcli": rmcli.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        seconds={name: median(taken) for name, taken in seconds.items()},
        slower_without={name: figures.ratio_of_medians_by_step(seconds[name], seconds[AS_IS]) for name in WITHOUT},
        largest_loss_difference=apart,
        rounds=seconds,
    )


def main() -> None:
    parser = train.parser()
    parser.add_argument("--rounds", type=int, default=5)
    arguments = train.checked(parser, parser.parse_args())
    if arguments.levers or arguments.startup or arguments.contenders:
        parser.error("loop.py has its own contenders")
    if not arguments.warmup:
        parser.error("--warmup: at least one step, which the clock starts after")
    if any("optimizer" in setting or "master_weights" in setting for setting in arguments.set):
        parser.error("fused AdamW is left out in turn: leave train.optimizer and train.master_weights alone")
    with tempfile.TemporaryDirectory() as folder:
        result = compare(arguments, Path(folder))
    print(f"{result['machine']}\n{result['versions']}")
    for name, ratio in result["slower_without"].items():
        print(f"without {name:<10} {result['seconds'][name]:8.2f} s, {ratio:.3f}x the time")
    figures.write(arguments.output, result)


if __name__ == "__main__":
    main()
