"""All figures of scored comparisons, by the names that metrics.json has."""

import math
from typing import Any

import numpy as np

from rmcli.metrics.calibration import calibration
from rmcli.metrics.intervals import accuracy
from rmcli.metrics.judged import Floats, Judged
from rmcli.metrics.length import length

BOUND = 5.0  # of raw scores: penalty_bound's default
BINS = 30


def figures(judged: Judged, of_length: Judged | None = None) -> dict[str, Any]:
    """As plain numbers, in JSON's types; sections are empty without any pair.

    `of_length`: the comparisons whose answers' lengths can be told apart, where that is not all of them.

    `pairs`, `accuracy`, `interval`; `mean_margin`; `groups` with a comparison; `tied_scores`: pairs whose answers
    have one score; `tied_labels`: comparisons that call neither better, which count nowhere. `margins`, `scores`:
    histograms and range; `beyond_bound`: share of answers outside +-5. `calibration`, `length`: see there.
    """
    margins = judged.margins
    return {
        **accuracy(judged),
        "groups": len(np.unique(judged.groups)),
        "mean_margin": float(margins.mean()) if len(margins) else None,
        "tied_scores": int((margins == 0).sum()),
        "tied_labels": judged.num_ties,
        "margins": spread(margins),
        "scores": spread(judged.scores) | _beyond(judged.scores),
        "calibration": calibration(judged),
        "length": length(judged if of_length is None else of_length),
    }


def spread(values: Floats) -> dict[str, Any]:
    """Mean, standard deviation, range, quantiles and a histogram (an edge more than counts); empty of none."""
    if not len(values):
        return {}
    edges = _edges(float(values.min()), float(values.max()))
    counts, _ = np.histogram(values, edges)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "quantiles": {str(share): float(np.quantile(values, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]},
    }


def _edges(low: float, high: float) -> Floats:
    """Of equal bins, as wide as BINS over the range are; 0 lies between two of them."""
    width = (high - low) / BINS or 1.0
    first, last = math.floor(low / width), math.ceil(high / width)
    edges = np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * width
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # products are rounded
    return edges


def _beyond(scores: Floats) -> dict[str, Any]:
    return {"beyond_bound": float((np.abs(scores) > BOUND).mean()), "bound": BOUND} if len(scores) else {}
