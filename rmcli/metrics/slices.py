"""Accuracy and mean margin of some comparisons at a time: by a value that each has, by a difference of length."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmcli.metrics.intervals import accuracy
from rmcli.metrics.judged import Judged

EDGES = (-200, -50, -10, 10, 50, 200)  # tokens; a bin holds its upper edge


def by_length_difference(judged: Judged) -> list[dict[str, Any]]:
    """By the tokens that the better answer has more than the worse one, shortest first; without bins of no pair."""
    bins = np.searchsorted(EDGES, judged.longer_by)
    found = {name: bins == number for number, name in enumerate(_names())}
    return [_entry(name, judged.only(within)) for name, within in found.items() if within.any()]


def by_value(judged: Judged, values_M: Sequence[Any]) -> list[dict[str, Any]]:
    """By the value that each comparison has: a number, a text, a truth value or None, in this order."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values_M]
    return [
        _entry(one, judged.only(np.array([_order(value) == _order(one) for value in values])))
        for one in sorted({_order(value): value for value in values}.values(), key=_order)
    ]


def _entry(value: Any, judged: Judged) -> dict[str, Any]:
    """`value`, `pairs`, `accuracy` with its `interval`, `mean_margin`, of at least one pair."""
    return {"value": value, **accuracy(judged), "mean_margin": float(judged.margins.mean())}


def _names() -> list[str]:
    between = [f"{low} to {high}" for low, high in itertools.pairwise(EDGES)]
    return [f"up to {EDGES[0]}", *between, f"above {EDGES[-1]}"]


def _order(value: Any) -> tuple[int, Any]:
    """Values of different kinds side by side: 1 and True are two, 1 and 1.0 are one."""
    if isinstance(value, bool):
        return 2, value
    if isinstance(value, int | float):
        return 0, value
    return (3, "") if value is None else (1, str(value))
