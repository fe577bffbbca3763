"""Per source: groups, ties, and whether the longer answer wins."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.values import Figures
from rmcli.config.sections import SourceSection

COUNTED = ("groups", "ties", "longer_wins", "shorter_wins", "same_length")


class BySource:
    """Counts per source of one split, as (sources,) arrays."""

    def __init__(self) -> None:
        self.counts = {name: np.zeros(0, dtype=np.int64) for name in COUNTED}

    def add(self, packs: FlatPacks) -> None:
        """Whether the longer answer wins: both have one prompt, so responses differ as conversations do."""
        longer_by = packs.response_lengths[packs.better] - packs.response_lengths[packs.worse]
        source_of = packs.source_ids[packs.compared_group]
        counted = {
            "groups": packs.source_ids,
            "ties": source_of[packs.tied],
            "longer_wins": source_of[~packs.tied & (longer_by > 0)],
            "shorter_wins": source_of[~packs.tied & (longer_by < 0)],
            "same_length": source_of[~packs.tied & (longer_by == 0)],
        }
        for name, sources in counted.items():
            before = self.counts[name]
            more = np.bincount(sources, minlength=len(before))
            more[: len(before)] += before
            self.counts[name] = more

    @staticmethod
    def figures(parts: Sequence["BySource"], sources: Sequence[Any]) -> list[Figures]:
        """Per source of the manifest. Of the comparisons with a winner, the share that the longer answer wins."""
        found = []
        for source_id, source in enumerate(sources):
            counts = {
                name: sum(int(part.counts[name][source_id : source_id + 1].sum()) for part in parts)
                for name in COUNTED
            }
            decided = counts["longer_wins"] + counts["shorter_wins"]
            share = counts["longer_wins"] / decided if decided else None
            found.append({"source": SourceSection.model_validate(source).label, **counts, "longer_wins_share": share})
        return found
