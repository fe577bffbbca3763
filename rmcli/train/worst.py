"""The comparisons of an evaluation that the score gets most wrong, as texts."""

from typing import Any

import numpy as np

from rmcli.metrics.judged import Judged
from rmcli.metrics.names import WORST
from rmcli.packs.reader import PackedSplit
from rmcli.records import TokenGroup
from rmcli.tokens.pair_texts import texts_of
from rmcli.train.evaluated import EvaluatedSet


def worst_of(one: EvaluatedSet, its: Judged, tokenizer: Any) -> list[dict[str, Any]]:
    """The lowest margins first. `prompt` is what the answers of the row share, in the chat template's own text."""
    starts, found = one.first_answers, []
    for place in np.argsort(its.margins, kind="stable")[:WORST].tolist():
        scored = one.scored[int(its.groups[place])]
        group = group_of(one.of.split, scored.source_id, scored.row_id)
        better, worse = (int(answers[place]) for answers in (its.better, its.worse))
        start = starts[int(its.groups[place])]
        found.append(
            {
                "margin": float(its.margins[place]),
                "chosen_score": float(its.scores[better]),
                "rejected_score": float(its.scores[worse]),
                "where": f"{one.of.folder}, row {scored.row_id}",
                **texts_of(tokenizer, group, better - start, worse - start),
            }
        )
    return found


def group_of(split: PackedSplit, source_id: int, row_id: int) -> TokenGroup:
    """The first group of this row. It is there: it has been scored."""
    ends = np.cumsum(split.groups_per_pack)
    for number in np.flatnonzero(split.row_ids == row_id):
        pack = int(np.searchsorted(ends, number, side="right"))
        start = int(number - (ends[pack - 1] if pack else 0))
        (group,) = split.groups(pack, start, start + 1)
        if group.source_id == source_id:
            return group
    raise AssertionError(f"row {row_id} is not in the set")
