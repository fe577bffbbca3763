"""What one log line is about: the steps since the last one."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor

from rmcli import output
from rmcli.model.metrics import PairMetrics
from rmcli.parallel import collectives, world
from rmcli.runs.metrics_file import add_metrics
from rmcli.train.feed import StepFeed


@dataclass(frozen=True)
class StepSums:
    """What a step's forwards add up to, over all processes: loss, whole and in its two parts, tokens and FLOPs."""

    loss: Tensor
    pair_loss: Tensor
    penalty: Tensor
    num_tokens: Tensor | int
    flops: Tensor | float
    effective_flops: Tensor | float


def add_up_step(feed: StepFeed, pair_loss: Tensor, penalty: Tensor, loss: Tensor, share: float) -> StepSums:
    """This process's sums joined with the others', of which `share` counts; on one process they are as they are."""
    if world.size() == 1:
        return StepSums(loss, pair_loss, penalty, feed.num_tokens, feed.flops, feed.effective_flops)
    counted = torch.tensor([feed.num_tokens, feed.flops, feed.effective_flops], dtype=torch.float64)
    parts = torch.stack([loss, pair_loss, penalty]).double()
    sums = collectives.add_up(torch.cat([parts, counted.to(parts.device)]) * share)
    return StepSums(*sums[:3].to(loss.dtype), *sums[3:])


MFU = {"mfu": "MFU", "mfu_fp8": "MFU (FP8)"}


class Window:
    """What one log line is about: the steps since the last one."""

    def __init__(self, peak_flops: float | None, in_fp8: bool = False) -> None:
        self.metrics = PairMetrics()
        self.peak_flops = peak_flops  # of all devices
        self.mfu = "mfu_fp8" if in_fp8 else "mfu"  # shares of two peaks are no figures of one column
        self.num_tokens: Tensor | int = 0
        self.flops: Tensor | float = 0.0
        self.effective_flops: Tensor | float = 0.0
        self.losses: list[tuple[Tensor, Tensor, Tensor]] = []  # the whole, the pairs' part, the penalty
        self.norms: list[Tensor] = []
        self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add_step(self, sums: "StepSums", norm: Tensor) -> None:
        """A step, still on the device."""
        self.num_tokens += sums.num_tokens
        self.flops += sums.flops
        self.effective_flops += sums.effective_flops
        self.losses.append((sums.loss, sums.pair_loss, sums.penalty))
        self.norms.append(norm)
        self.seconds += time.perf_counter() - self.started
        self.restart_clock()

    def take_back(self, metrics: PairMetrics) -> None:
        """The last step was left out: its scores, loss and norm are no part of the line. `metrics`: before it."""
        self.metrics = metrics
        self.losses.pop()
        self.norms.pop()

    def result(self) -> dict[str, Any]:
        num_pairs, num_tokens = round(float(self.metrics.num_pairs)), round(float(self.num_tokens))
        seconds = self.seconds + time.perf_counter() - self.started
        return {
            "loss": _mean([whole for whole, _, _ in self.losses]),
            "pair_loss": _mean([pairs for _, pairs, _ in self.losses]),
            "penalty": _mean([penalty for _, _, penalty in self.losses]),
            **self.metrics.result(),
            "grad_norm": _mean(self.norms),
            "pairs": num_pairs,
            "tokens": num_tokens,
            "tokens_per_s": num_tokens / seconds,
            "pairs_per_s": num_pairs / seconds,
            **self._rates(seconds),
        }

    def _rates(self, seconds: float) -> dict[str, float]:
        """Model FLOP/s, and their share of what the device can do where that is known."""
        rates = {
            "flops_per_s": float(self.flops) / seconds,
            "effective_flops_per_s": float(self.effective_flops) / seconds,
        }
        if self.peak_flops is not None:
            rates[self.mfu] = rates["flops_per_s"] / self.peak_flops
            rates[f"effective_{self.mfu}"] = rates["effective_flops_per_s"] / self.peak_flops
        return rates


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).mean()) if values else float("nan")


def log(progress: output.Progress, metrics_file: TextIO | None, values: Mapping[str, Any]) -> None:
    """One line into metrics.jsonl, and its main fields on the screen."""
    add_metrics(metrics_file, values)
    progress.line(
        {
            "step": str(values["step"]),
            "loss": f"{values['loss']:.4f}",
            "pair loss": f"{values['pair_loss']:.4f}",
            "penalty": f"{values['penalty']:.4f}",
            "accuracy": f"{values['accuracy']:.3f}",
            "margin": f"{values['margin']:.3f}",
            "score": f"{values['score_mean']:.3f}",
            "min..max": f"{values['score_min']:.2f}..{values['score_max']:.2f}",
            "lr": f"{values['lr']:.2e}",
            "tokens/s": f"{values['tokens_per_s']:,.0f}",
            "pairs/s": f"{values['pairs_per_s']:.2f}",
            **{title: f"{values[name]:.1%}" for name, title in MFU.items() if name in values},
        }
    )
