"""How scores move when an answer's form changes and its content does not."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rmcli import output
from rmcli.evaluate.edits import EDITS
from rmcli.lines.team import scored
from rmcli.metrics.intervals import mean_interval
from rmcli.records import Conversation, PreferenceGroup
from rmcli.scorer.scorer import Score, Scorer
from rmcli.scorer.tokens import encode_apart
from rmcli.scorer.windows import characters_of, windows


def format_bias(scorer: Scorer, answers: Sequence[PreferenceGroup]) -> list[dict[str, Any]]:
    """Per edit: of how many answers, `mean_change` of the score with its 95 % interval, and `rises`, the share of
    answers whose score rises. Left out, and counted, are answers that the edit leaves as they are (`unchanged`), and
    those that were cut or have no score before or after it (`cut_or_unscored`). Empty without any answers.

    All processes call it; the first one has the answers and the result.
    """
    groups = [_edited(answer) for answer in answers]

    def score(window: list[PreferenceGroup]) -> list[list[Score]]:
        return scorer.score_sides(encode_apart(scorer.encoder, window), progress.advance)

    found: list[list[Score]] = []
    with output.progress("edited answers", len(groups), "answers") as progress:
        for _, scores in scored(windows(iter(groups), characters_of), score):
            found += scores
    return list(_figures(answers, found)) if answers else []


def _edited(answer: PreferenceGroup) -> PreferenceGroup:
    """The answer as it is, and after each edit."""
    talk = answer.conversations[0]
    return replace(answer, conversations=(talk, *(_changed(talk, edit) for edit in EDITS)))


def _changed(talk: Conversation, edit: str) -> Conversation:
    last = talk[-1]
    changed = dict(last) | {"content": EDITS[edit](last["content"])}
    return (*talk[:-1], changed)  # pyright: ignore[reportReturnType]  a message with another content


def _figures(answers: Sequence[PreferenceGroup], found: Sequence[Sequence[Score]]) -> Iterator[dict[str, Any]]:
    for place, edit in enumerate(EDITS, 1):
        both = [
            (scores[0], scores[place])
            for answer, scores in zip(answers, found, strict=True)
            if _is_changed(answer, edit)
        ]
        # A cut conversation has lost other tokens of its prompt than the edited one.
        changes = [
            after.value - before.value
            for before, after in both
            if before.value is not None and after.value is not None and not before.truncated and not after.truncated
        ]
        yield {
            "edit": edit,
            "answers": len(changes),
            "unchanged": len(answers) - len(both),
            "cut_or_unscored": len(both) - len(changes),
            **_of_changes(np.asarray(changes)),
        }


def _of_changes(changes: np.ndarray) -> dict[str, Any]:
    if not len(changes):
        return {"mean_change": None, "interval": None, "rises": None}
    interval = mean_interval(changes)
    return {
        "mean_change": float(changes.mean()),
        "interval": interval and [*interval],
        "rises": float((changes > 0).mean()),
    }


def _is_changed(answer: PreferenceGroup, edit: str) -> bool:
    talk = answer.conversations[0]
    return _changed(talk, edit)[-1]["content"] != talk[-1]["content"]
