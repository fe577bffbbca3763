"""Two models on the same pairs."""

from typing import Any

import numpy as np

from rmcli.evaluate.gathered import Gathered
from rmcli.metrics.intervals import accuracy, paired_bootstrap


def compared(ours: Gathered, theirs: Gathered) -> dict[str, Any]:
    """Of the comparisons that both models have scored: the other's accuracy with its interval, and the difference.

    `not_compared`: comparisons that one of them has no score of, such as conversations too long for it.
    """
    both = set(ours.keys) & set(theirs.keys)  # in either list in one order: by line, then as the row has them
    mine, other = (one.judged().only(np.asarray([key in both for key in one.keys], bool)) for one in (ours, theirs))
    return {
        **accuracy(other),
        "difference": paired_bootstrap(mine.right, other.right, mine.groups) if both else None,
        "not_compared": len(set(ours.keys) ^ set(theirs.keys)),
    }
