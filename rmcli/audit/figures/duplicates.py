"""Groups whose token ids are those of an earlier group."""

from collections.abc import Sequence

import numpy as np

from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.growing import Growing, repeated
from rmcli.audit.figures.values import MAX_LISTED, Figures


class Duplicates:
    """Per group of one split a hash of its token ids, and its row."""

    def __init__(self) -> None:
        self.hashes, self.row_ids = Growing(np.uint64), Growing(np.int64)

    def add(self, packs: FlatPacks, conversation_hashes: np.ndarray) -> None:
        self.hashes.add(packs.group_hashes(conversation_hashes))
        self.row_ids.add(packs.row_ids)

    @staticmethod
    def figures(parts: Sequence["Duplicates"]) -> Figures:
        """Of the train and the eval part together. `rows` lists the rows of each set of equal groups."""
        hashes = Growing.joined([part.hashes for part in parts])
        of_each = np.split(hashes, np.cumsum([len(part.hashes) for part in parts])[:-1])
        members = near_duplicates.is_in(hashes, repeated(hashes))
        keys, rows = hashes[members], Growing.joined([part.row_ids for part in parts])[members]
        order = np.lexsort((rows, keys))
        keys, rows = keys[order], rows[order]
        # A row that its source's weight takes several times is no duplicate of itself.
        other = np.ones(len(keys), dtype=bool)
        other[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
        keys, rows = keys[other], rows[other]
        of_several = repeated(keys)
        several = near_duplicates.is_in(keys, of_several)
        sets: dict[int, list[int]] = {}
        for key, row in zip(keys[several].tolist(), rows[several].tolist(), strict=True):
            sets.setdefault(key, []).append(row)
        train, held_out = (np.unique(part[near_duplicates.is_in(part, of_several)]) for part in of_each)
        return {
            "groups": int(several.sum()) - len(of_several),
            "in_both_splits": len(np.intersect1d(train, held_out, assume_unique=True)),
            "rows": sorted(sets.values())[:MAX_LISTED],
        }
