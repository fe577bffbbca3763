"""A log line's window as plain numbers: a checkpoint between two log lines holds what is summed up so far."""

from typing import Any

import torch
from torch import Tensor

from rmcli.model.metrics import TOTALS, PairMetrics
from rmcli.train.window import Window


def to_numbers(window: Window) -> dict[str, Any]:
    """JSON gives float32 and float64 numbers back bit by bit."""
    metrics = window.metrics
    return {
        "num_pairs": round(float(metrics.num_pairs)),
        "num_scores": round(float(metrics.num_scores)),
        "sums": {name: float(value) for name, value in metrics.total().items()} if metrics.num_scores else None,
        "losses": [[float(part) for part in parts] for parts in window.losses],
        "norms": [float(norm) for norm in window.norms],
        "num_tokens": round(float(window.num_tokens)),
        "flops": float(window.flops),
        "effective_flops": float(window.effective_flops),
        "seconds": window.seconds,
    }


def fill(window: Window, numbers: dict[str, Any], device: torch.device, is_summed: bool) -> None:
    """Into a fresh window. `is_summed`: the sums are those of several processes, which are float64."""

    def tensor(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    if numbers["sums"] is not None:
        sums = [numbers["sums"][name] for name in TOTALS]
        total = torch.tensor(sums, dtype=torch.float64 if is_summed else torch.float32, device=device)
        window.metrics = PairMetrics(numbers["num_pairs"], numbers["num_scores"], [total])
    for loss, pairs, penalty in numbers["losses"]:
        window.losses.append((tensor(loss), tensor(pairs), tensor(penalty)))
    window.norms += map(tensor, numbers["norms"])
    window.num_tokens = numbers["num_tokens"]
    window.flops, window.effective_flops = numbers["flops"], numbers["effective_flops"]
    window.seconds = numbers["seconds"]
