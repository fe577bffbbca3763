"""What is kept of the groups that an evaluation has scored: numbers, not tokens; of all processes, in one order."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmcli.metrics.figures import figures
from rmcli.metrics.judged import Judged
from rmcli.model.batch import comparisons_of
from rmcli.parallel.collectives import gather
from rmcli.records import Comparison, TokenGroup
from rmcli.train.spread import Spread

_TOKEN = np.zeros(1, np.int32)


class Scored(NamedTuple):
    """A group: which row it is, the score of each answer and its tokens after the prompt, and what the loss takes of
    its comparisons."""

    source_id: int
    row_id: int
    scores: tuple[float, ...]
    tokens: tuple[int, ...]
    comparisons: tuple[Comparison, ...]


def of_forward(groups: Sequence[TokenGroup], scores: Sequence[float], loss_type: str) -> list[Scored]:
    """`scores`: of all answers of all groups, in order."""
    found, start = [], 0
    for group in groups:
        stop = start + len(group.responses)
        lengths = tuple(len(response) for response in group.responses)
        comparisons = comparisons_of(group, loss_type)
        found.append(Scored(group.source_id, group.row_id, tuple(scores[start:stop]), lengths, comparisons))
        start = stop
    return found


def of_all(own: Sequence[Scored], spread: Spread) -> list[Scored]:
    """Those of all processes, by source and row: each once, in an order that does not depend on who scored what.

    Processes that share rows all have them: the first of them counts. A row that a set holds twice has two entries.
    """
    counted = list(own) if spread.counts_rows else []
    return sorted(one for part in gather(counted) for one in part)


def judged(scored: Iterable[Scored]) -> Judged:
    """Of groups in order; a comparison's number in `groups` is its group's place."""
    return Judged.of((_without_tokens(one), list(one.scores)) for one in scored)


def are_finite(scored: Iterable[Scored]) -> bool:
    return all(np.isfinite(one.scores).all() for one in scored)


def figures_of_scores(scored: Sequence[Scored]) -> dict[str, Any]:
    """Calibration, and what the score has to do with length; None where there is no such number.

    Of scores that are not finite none is one.
    """
    found = figures(judged(scored)) if are_finite(scored) else {"calibration": {}, "length": {}, "scores": {}}
    return {
        **{name: found["calibration"].get(name) for name in ("ece", "brier", "log_loss", "temperature")},
        "length_spearman": found["length"].get("spearman"),
        "longer_wins": found["length"].get("longer_wins"),
        "beyond_bound": found["scores"].get("beyond_bound"),
    }


def _without_tokens(one: Scored) -> TokenGroup:
    """A group of the same lengths; its tokens are all one, and take no memory."""
    responses = tuple(np.broadcast_to(_TOKEN, (length,)) for length in one.tokens)
    return TokenGroup(_TOKEN, responses, one.row_id, one.source_id, comparisons=one.comparisons)
