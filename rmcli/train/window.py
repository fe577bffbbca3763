"""What one log line is about: the steps since the last one."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor

from rmcli import output
from rmcli.model.metrics import PairMetrics
from rmcli.runs.metrics_file import add_metrics
from rmcli.train.feed import StepFeed


class Window:
    """What one log line is about: the steps since the last one."""

    def __init__(self, peak_flops: float | None) -> None:
        self.metrics = PairMetrics()
        self.peak_flops = peak_flops
        self.num_tokens = 0
        self.flops = self.effective_flops = 0.0
        self.losses: list[tuple[Tensor, Tensor, Tensor]] = []  # the whole, the pairs' part, the penalty
        self.norms: list[Tensor] = []
        self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add_step(self, feed: StepFeed, loss: Tensor, pair_loss: Tensor, penalty: Tensor, norm: Tensor) -> None:
        """A step and its loss, whole and in its two parts, still on the device."""
        self.num_tokens += feed.num_tokens
        self.flops += feed.flops
        self.effective_flops += feed.effective_flops
        self.losses.append((loss, pair_loss, penalty))
        self.norms.append(norm)
        self.seconds += time.perf_counter() - self.started
        self.restart_clock()

    def take_back(self, metrics: PairMetrics) -> None:
        """The last step was left out: its scores, loss and norm are no part of the line. `metrics`: before it."""
        self.metrics = metrics
        self.losses.pop()
        self.norms.pop()

    def result(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.started
        return {
            "loss": _mean([whole for whole, _, _ in self.losses]),
            "pair_loss": _mean([pairs for _, pairs, _ in self.losses]),
            "penalty": _mean([penalty for _, _, penalty in self.losses]),
            **self.metrics.result(),
            "grad_norm": _mean(self.norms),
            "pairs": self.metrics.num_pairs,
            "tokens": self.num_tokens,
            "tokens_per_s": self.num_tokens / seconds,
            "pairs_per_s": self.metrics.num_pairs / seconds,
            **self._rates(seconds),
        }

    def _rates(self, seconds: float) -> dict[str, float]:
        """Model FLOP/s, and their share of what the device can do where that is known."""
        rates = {"flops_per_s": self.flops / seconds, "effective_flops_per_s": self.effective_flops / seconds}
        if self.peak_flops is not None:
            rates["mfu"] = rates["flops_per_s"] / self.peak_flops
            rates["effective_mfu"] = rates["effective_flops_per_s"] / self.peak_flops
        return rates


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).mean()) if values else float("nan")


def log(progress: output.Progress, metrics_file: TextIO, values: Mapping[str, Any]) -> None:
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
            **({"MFU": f"{values['mfu']:.1%}"} if "mfu" in values else {}),
        }
    )
