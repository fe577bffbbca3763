"""Whether the score looks at length: with what it goes, how a ruler would do, and what is left at equal length."""

from typing import Any

import numpy as np

from rmcli.metrics.intervals import accuracy
from rmcli.metrics.judged import Floats, Judged, Whole, right

EQUAL = 0.1  # answers whose lengths differ by at most this share of the longer one are of equal length


def length(judged: Judged) -> dict[str, Any]:
    """Figures of score and length; empty without any pair.

    `spearman`: rank correlation of score and tokens over the answers compared, None where one of them never changes.
    `longer_wins`: accuracy of who always takes the longer answer (1/2 where both are as long). `equal_length`,
    `better_is_longer`, `better_is_shorter`: accuracy among those pairs.
    """
    if not judged.num_pairs:
        return {}
    answers = np.union1d(judged.better, judged.worse)
    by, longest = judged.longer_by, np.maximum(judged.tokens[judged.better], judged.tokens[judged.worse])
    return {
        "spearman": spearman(judged.scores[answers], judged.tokens[answers]),
        "longer_wins": float(right(by.astype(np.float64)).mean()),
        "equal_length": accuracy(judged.only(np.abs(by) <= EQUAL * longest)),
        "better_is_longer": accuracy(judged.only(by > 0)),
        "better_is_shorter": accuracy(judged.only(by < 0)),
    }


def spearman(one: Floats, other: Floats | Whole) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where either never changes."""
    first, second = _ranks(one), _ranks(other)
    if not len(first) or not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats | Whole) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
