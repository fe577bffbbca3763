"""Two conversations that are compared in both orders."""

from collections.abc import Sequence

import numpy as np

from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.growing import Growing, repeated
from rmcli.audit.figures.values import MAX_LISTED, Figures


class Contradictions:
    """Per comparison that is no tie a hash of its two conversations, which of them is better, and its row."""

    def __init__(self) -> None:
        self.keys, self.lower_is_better, self.row_ids = (Growing(kind) for kind in (np.uint64, np.bool_, np.int64))

    def add(self, packs: FlatPacks, conversation_hashes: np.ndarray) -> None:
        decided = ~packs.tied
        better = conversation_hashes[packs.better[decided]]
        worse = conversation_hashes[packs.worse[decided]]
        low, high = np.minimum(better, worse), np.maximum(better, worse)
        self.keys.add(near_duplicates.scramble(low ^ near_duplicates.scramble(high)))
        self.lower_is_better.add(better < worse)
        self.row_ids.add(packs.row_ids[packs.compared_group[decided]])

    @staticmethod
    def figures(parts: Sequence["Contradictions"]) -> Figures:
        """Two conversations that are compared in both orders. `rows` lists the rows of each such two."""
        keys = Growing.joined([part.keys for part in parts])
        # Few are compared twice; the others cannot contradict each other.
        compared_twice = near_duplicates.is_in(keys, repeated(keys))
        keys = keys[compared_twice]
        lower = Growing.joined([part.lower_is_better for part in parts])[compared_twice]
        row_ids = Growing.joined([part.row_ids for part in parts])[compared_twice]
        unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        one_way = np.bincount(inverse, weights=lower, minlength=len(unique)).astype(np.int64)
        both = (one_way > 0) & (one_way < counts)
        members = np.flatnonzero(both[inverse])
        rows: dict[int, set[int]] = {}
        for member in members.tolist():
            rows.setdefault(int(inverse[member]), set()).add(int(row_ids[member]))
        return {
            "pairs_of_conversations": int(both.sum()),
            "comparisons": len(members),
            "rows": sorted(sorted(group) for group in rows.values())[:MAX_LISTED],
        }
