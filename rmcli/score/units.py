"""What is scored and written at once: a row, or a prompt with all its answers."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from json import dumps
from typing import Any, Protocol, TypeVar

from rmcli.lines.read import Line
from rmcli.lines.scoring import score_lines
from rmcli.score.choice import Choice
from rmcli.score.prompts import Prompt, joined
from rmcli.score.results import Summary
from rmcli.scorer.scorer import Score, Scored, Scorer
from rmcli.scorer.tokens import encode_apart, written_alike
from rmcli.scorer.windows import characters_of

Advance = Callable[[float], None]  # told of rows that are done
OfPrompts = tuple[list[list[Score]], Counter[str]]  # of each answer, and what is noted of how many
Written = tuple[Sequence[bytes], list[str]]  # the digests of a unit's rows, and its lines
Unit = TypeVar("Unit")
Found = TypeVar("Found")  # the scores of a window


def _size_of(kept: Mapping[str, Any]) -> int:
    """Characters of the user's own columns, which wait for their line beside what is scored."""
    return len(dumps(kept, default=str)) if kept else 0


class Units(Protocol[Unit, Found]):
    """How lines are put together, scored a window at a time, and written."""

    def of(self, lines: Iterator[Line]) -> Iterator[Unit]: ...

    def size(self, unit: Unit) -> int: ...

    def score(self, scorer: Scorer, window: list[Unit], advance: Advance) -> Found: ...

    def written(self, window: list[Unit], found: Found, summary: Summary) -> Iterator[Written]: ...


@dataclass(frozen=True)
class Rows:
    """A line for each row, whatever it holds; one conversation without a score is enough for an error."""

    choice: Choice

    def of(self, lines: Iterator[Line]) -> Iterator[Line]:
        return lines

    def size(self, unit: Line) -> int:
        return characters_of(unit.group) + _size_of(unit.kept)

    def score(self, scorer: Scorer, window: list[Line], advance: Advance) -> list[Scored | str]:
        return score_lines(scorer, window, advance)

    def written(self, window: list[Line], found: list[Scored | str], summary: Summary) -> Iterator[Written]:
        scored = iter(found)
        for line in window:
            one = next(scored) if line.group is not None else str(line.problem)
            text = summary.add(line, one, self.choice.min_score)
            yield [line.digest], [] if text is None else [text]


@dataclass(frozen=True)
class Prompts:
    """Lines for each prompt, as the choice has it. An answer without a score costs no other."""

    choice: Choice

    def of(self, lines: Iterator[Line]) -> Iterator[Prompt]:
        return joined(lines, self.choice.best_of)

    def size(self, unit: Prompt) -> int:
        bad = (kept for _, _, kept in unit.problems)
        return characters_of(unit.group) + sum(map(_size_of, chain(unit.kept, bad)))

    def score(self, scorer: Scorer, window: list[Prompt], advance: Advance) -> OfPrompts:
        groups = [prompt.group for prompt in self._asked(window) if prompt.group is not None]
        sides = encode_apart(scorer.encoder, groups)
        if (fault := written_alike(groups, sides)) is not None:
            raise fault
        noted = Counter(name for of_group in sides for side in of_group for name in getattr(side, "noted", ()))
        rows = sum(len(prompt.digests) for prompt in window)
        told = 0.0

        def advance_rows(count: int) -> None:
            nonlocal told
            told += count * rows / len(groups)
            advance(count * rows / len(groups))

        scores = scorer.score_sides(sides, advance_rows)
        advance(rows - told)
        return scores, noted

    def written(self, window: list[Prompt], found: OfPrompts, summary: Summary) -> Iterator[Written]:
        scores = iter(found[0])
        summary.noted.update(found[1])
        for whole, prompt in zip(window, self._asked(window), strict=True):
            of_prompt = [] if prompt.group is None else next(scores)
            yield whole.digests, self._lines(whole, prompt, of_prompt, summary)

    def _asked(self, window: list[Prompt]) -> list[Prompt]:
        """With the answers that are looked at."""
        return [prompt.first(self.choice.best_of) for prompt in window]

    def _lines(self, whole: Prompt, prompt: Prompt, scores: list[Score], summary: Summary) -> list[str]:
        summary.lines += len(prompt.digests)
        texts = []
        if whole.group is not None:
            summary.add_prompt(prompt.where, scores, len(whole.group.conversations), self.choice.best_of)
            texts += [summary.result(found, own) for found, own in self.choice.results(prompt, scores, summary)]
        errors = [summary.error(problem, where, kept) for where, problem, kept in prompt.problems]
        return texts + errors * self.choice.has_error_lines
