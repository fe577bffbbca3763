"""A log line's window as plain numbers: a checkpoint between two log lines holds what is summed up so far."""

from typing import Any

import torch
from torch import Tensor

from rmcli.model.metrics import TOTALS, PairMetrics
from rmcli.train.window import Window


def to_numbers(window: Window) -> dict[str, Any]:
    """Float32 numbers, which JSON gives back bit by bit."""
    metrics = window.metrics
    return {
        "num_pairs": metrics.num_pairs,
        "num_scores": metrics.num_scores,
        "sums": {name: float(value) for name, value in metrics.total().items()} if metrics.num_scores else None,
        "losses": [[float(part) for part in parts] for parts in window.losses],
        "norms": [float(norm) for norm in window.norms],
        "num_tokens": window.num_tokens,
        "flops": window.flops,
        "effective_flops": window.effective_flops,
        "seconds": window.seconds,
    }


def fill(window: Window, numbers: dict[str, Any], device: torch.device) -> None:
    """Into a fresh window."""

    def tensor(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    if numbers["sums"] is not None:
        total = torch.stack([tensor(numbers["sums"][name]) for name in TOTALS])
        window.metrics = PairMetrics(numbers["num_pairs"], numbers["num_scores"], [total])
    for loss, pairs, penalty in numbers["losses"]:
        window.losses.append((tensor(loss), tensor(pairs), tensor(penalty)))
    window.norms += map(tensor, numbers["norms"])
    window.num_tokens = numbers["num_tokens"]
    window.flops, window.effective_flops = numbers["flops"], numbers["effective_flops"]
    window.seconds = numbers["seconds"]
