"""What is kept of a set while it is scored: numbers of each comparison, and few texts, however long the set is."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmcli.evaluate.sample import Sample
from rmcli.evaluate.worst import Worst
from rmcli.lines.read import Line
from rmcli.metrics.judged import Judged
from rmcli.records import PreferenceGroup
from rmcli.scorer.scorer import Scored

NONE = "(none)"  # in place of a column's value
LARGEST = 1e300  # of a number that is binned; others are names


@dataclass
class Gathered:
    """Of one set: `judged` window by window, and a value of each name in `values` for each of its comparisons.

    `keys`: (line, better, worse) of each comparison, by which another model's is found. `cut_apart`: whether its
    answers' lengths cannot be told, as each lost tokens of its own. `source_of`: what a line is
    counted under. `by`: the columns asked for.
    """

    source_of: Callable[[Line], str]
    by: tuple[str, ...]
    worst: Worst
    sample: Sample
    lines: int = 0
    conversations: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    first_error: str | None = None
    parts: list[Judged] = field(default_factory=list)
    keys: list[tuple[int, int, int]] = field(default_factory=list)
    cut_apart: list[bool] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, window: Sequence[Line], found: Sequence[Scored | str]) -> None:
        """A window, and what `score_lines` gave of it."""
        scored = iter(found)
        usable: list[tuple[Line, Scored]] = []
        for number, line in enumerate(window, self.lines):
            one = next(scored) if line.group is not None else str(line.problem)
            if isinstance(one, str):
                self.errors[one] += 1
                self.first_error = self.first_error or f"{one} at {line.where}"
                continue
            self._add_scored(number, line, one, decided(one))
            usable.append((line, one))
        self.lines += len(window)
        self._add_comparisons(usable)

    def _add_scored(self, number: int, line: Line, scored: Scored, pairs: Sequence[tuple[int, int]]) -> None:
        self.conversations += len(scored.scores)
        self.truncated += scored.tokens.truncated
        self.noted.update(scored.tokens.noted)
        # Pairs of a prepared set are cut together: what is left of them differs as the answers do.
        cut_apart = scored.tokens.truncated and isinstance(line.group, PreferenceGroup)
        self.cut_apart += [cut_apart] * len(pairs)
        for better, worse in pairs:
            self.keys.append((number, better, worse))
            self.worst.offer(line, scored, better, worse)
        if pairs:
            self.sample.offer(line, pairs[0][0])

    def _add_comparisons(self, usable: Sequence[tuple[Line, Scored]]) -> None:
        judged = Judged.of((scored.tokens, scored.scores) for _, scored in usable)
        self.parts.append(judged)
        told = [self._told_apart(line, scored) for line, scored in usable]
        for name in ("source", "turns", "truncated", *self.by):
            column = self.values.setdefault(name, [])
            column += [told[group][name] for group in judged.groups.tolist()]

    def _told_apart(self, line: Line, scored: Scored) -> dict[str, Any]:
        named = line.columns.get("source")
        return {
            "source": self.source_of(line) if named is None else str(named),
            "turns": _turns(line),
            "truncated": scored.tokens.truncated,
            **{column: _plain(line.columns.get(column)) for column in self.by},
        }

    def judged(self) -> Judged:
        return Judged.joined(self.parts)

    def of_length(self, judged: Judged) -> Judged:
        """Those whose answers' lengths can be told apart."""
        return judged.only(~np.asarray(self.cut_apart, dtype=bool))


def decided(scored: Scored) -> list[tuple[int, int]]:
    """(better, worse) of each comparison that says so, in the order of `Judged.of`."""
    return [one.ends for one in scored.tokens.comparisons if not one.is_tie]


def _turns(line: Line) -> int | None:
    """Messages of the user in the first conversation; None where there are tokens alone."""
    if not isinstance(line.group, PreferenceGroup):
        return None
    return sum(message["role"] == "user" for message in line.group.conversations[0])


def _plain(value: Any) -> Any:
    """A number or a text; None, NaN and an empty cell are no value."""
    if value is None or value == "" or value != value:
        return NONE
    is_number = isinstance(value, int | float) and abs(value) < LARGEST
    return value if isinstance(value, bool | str) or is_number else str(value)
