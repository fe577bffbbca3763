"""Accuracy by what tells pairs apart: numbers of many values in bins, of many texts the frequent ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmcli.evaluate.gathered import LARGEST, NONE
from rmcli.metrics.judged import Judged
from rmcli.metrics.slices import by_length_difference, by_value

MOST = 50  # values of one column, by number of pairs; the others are pooled
BINS = 5  # of a column of numbers that has more than twice as many
OTHERS = "(others)"


def by(judged: Judged, of_length: Judged, values: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """A table per name: none of `truncated` where nothing was cut, an empty one of what tokens alone do not tell."""
    tables: dict[str, list[dict[str, Any]]] = {"source": [], "length_difference": by_length_difference(of_length)}
    for name, column in values.items():
        if name == "truncated" and not any(column):
            continue
        known = any(value is not None for value in column)
        tables[name] = by_value(judged, _few(column)) if known else []
    return tables


def _few(column: Sequence[Any]) -> list[Any]:
    counts = Counter(column)
    numbers = {value: number for value in counts if value != NONE and (number := _number(value)) is not None}
    if len(numbers) > 2 * BINS and len(numbers) >= len(counts) - 1:  # and NONE
        bins = _bins(np.asarray([numbers[value] for value in column if value in numbers]))
        return [bins[numbers[value]] if value in numbers else value for value in column]
    if len(counts) <= MOST:
        return list(column)
    kept = {value for value, _ in counts.most_common(MOST - 1)}
    return [value if value in kept else OTHERS for value in column]


def _number(value: Any) -> float | None:
    """A CSV has numbers as text."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and abs(number) < LARGEST else None


def _bins(numbers: np.ndarray) -> dict[float, str]:
    """Each number's bin, which is the fifth that it lies in; equal ones lie in one."""
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)))
    different = np.unique(numbers)
    places = np.clip(np.searchsorted(edges, different, side="right") - 1, 0, max(len(edges) - 2, 0))
    names = [f"{number + 1}: {edges[number]:.10g} to {edges[number + 1]:.10g}" for number in range(len(edges) - 1)]
    return {float(one): names[place] for one, place in zip(different, places, strict=True)}
