"""Two models on the same pairs."""

from typing import Any

import numpy as np

from rmcli.evaluate.gathered import Gathered
from rmcli.metrics.intervals import paired_bootstrap, wilson_interval


def compared(ours: Gathered, theirs: Gathered) -> dict[str, Any]:
    """Of the comparisons that both models have scored: the other's accuracy with its interval, and the difference.

    `not_compared`: comparisons that one of them has no score of, such as conversations too long for it.
    """
    places = {key: place for place, key in enumerate(theirs.keys)}
    both = [key for key in ours.keys if key in places]
    mine = {key: place for place, key in enumerate(ours.keys)}
    first, second = ours.judged(), theirs.judged()
    at = np.asarray([mine[key] for key in both], dtype=np.int64)
    there = np.asarray([places[key] for key in both], dtype=np.int64)
    left_out = len(mine.keys() ^ places.keys())
    if not both:
        return {"pairs": 0, "accuracy": None, "interval": None, "difference": None, "not_compared": left_out}
    our_right, their_right, prompts = first.right[at], second.right[there], first.groups[at]
    share = float(their_right.mean())
    return {
        "pairs": len(both),
        "accuracy": share,
        "interval": [*wilson_interval(share, len(np.unique(prompts)))],
        "difference": paired_bootstrap(our_right, their_right, prompts),
        "not_compared": left_out,
    }
