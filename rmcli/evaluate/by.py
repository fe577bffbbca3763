"""Accuracy by what tells pairs apart: numbers of many values in bins, of many texts the frequent ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmcli.metrics.judged import Judged
from rmcli.metrics.slices import by_length_difference, by_value

MOST = 50  # values of one column, by number of pairs; the others are pooled
BINS = 5  # of a column of numbers that has more than twice as many
OTHERS = "(others)"


def by(judged: Judged, values: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """A table per name; none for what is the same for all pairs unless it was asked for, and none where unknown."""
    tables: dict[str, list[dict[str, Any]]] = {"source": [], "length_difference": by_length_difference(judged)}
    for name, column in values.items():
        if name == "truncated" and not any(column):
            continue
        known = any(value is not None for value in column)
        tables[name] = by_value(judged, _few(column)) if known else []
    return tables


def _few(column: Sequence[Any]) -> list[Any]:
    counts = Counter(column)
    if len(counts) > 2 * BINS and all(isinstance(value, int | float) and value == value for value in counts):
        return _binned(np.asarray(column, dtype=np.float64))
    if len(counts) <= MOST:
        return list(column)
    kept = {value for value, _ in counts.most_common(MOST - 1)}
    return [value if value in kept else OTHERS for value in column]


def _binned(numbers: np.ndarray) -> list[str]:
    """Numbers as the fifth they lie in, in order; equal ones in one."""
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)))
    places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [f"{number + 1}: {edges[number]:g} to {edges[number + 1]:g}" for number in range(len(edges) - 1)]
    return [names[place] for place in places]
