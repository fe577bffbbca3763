"""How conversations end, and whether better answers end otherwise than worse ones."""

import numpy as np

from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import Figures

ENDING_SAMPLE = 100_000  # conversations per split whose endings are compared
ENDING_LENGTHS = (1, 4, 8, 16)  # tokens, the reward token included


class Endings:
    """The last tokens of the first conversations of a split, and how often each of these won or lost."""

    def __init__(self) -> None:
        self.endings: list[np.ndarray] = []
        self.standing: list[np.ndarray] = []
        self.number = 0

    def add(self, packs: FlatPacks) -> None:
        if self.number < ENDING_SAMPLE:
            self.endings.append(packs.endings(max(ENDING_LENGTHS)).astype(np.int32))
            self.standing.append(np.sign(packs.standing()).astype(np.int8))
            self.number += len(packs.group_of)

    def figures(self, text: Text) -> list[Figures]:
        """The most common last tokens, and whose they are: better answers, worse ones."""
        if not self.endings:
            return []
        endings, standing = np.concatenate(self.endings), np.concatenate(self.standing)
        found = []
        for length in ENDING_LENGTHS:
            ends = endings[:, -length:]
            hashes = near_duplicates.hashes_of(ends.T)
            _, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
            first = firsts[counts == counts.max()].min()  # of several as common ones that which comes first
            commonest, ids = hashes == hashes[first], ends[first]
            found.append(
                {
                    "tokens": length,
                    "share": float(commonest.mean()),
                    "share_of_better": _share(commonest[standing > 0]),
                    "share_of_worse": _share(commonest[standing < 0]),
                    "text": text.ending(ids[ids >= 0]),
                }
            )
        return found


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None
