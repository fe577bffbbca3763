"""Conversations to scores: each is cut for itself, and what the answers of a group share is computed once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

from rmcli import output
from rmcli.records import PreferenceGroup, TokenGroup
from rmcli.scorer.run import Runner
from rmcli.scorer.tokens import encode_apart, share, written_alike
from rmcli.tokens.encode import NOTED, Encoder

NOT_FINITE = "score_not_finite"


@dataclass(frozen=True)
class Scored:
    """The tokens of a group and the score of each of its conversations, in the group's order."""

    tokens: TokenGroup
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one conversation. Of `value` and `error` exactly one is None.

    `value`: the raw score, a finite float32 without unit; higher is better. Of a model trained with the ranking loss
    the difference of two scores is the log-odds that the first answer is the better one.
    `truncated`: tokens of the conversation were left out, so that it fits the model's max_length.
    `error`: why there is no score, by a short name (docs/format.md lists them).
    """

    value: float | None
    truncated: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Scorer:
    """A model ready to score. A conversation's score is that of its own tokens, whatever else is scored with it."""

    runner: Runner
    encoder: Encoder

    def score(self, groups: Sequence[PreferenceGroup], advance: Callable[[int], None]) -> list[Scored | str]:
        """Per group its scores, or why it has none: one conversation without a score is enough.

        `advance` is told of groups that are done. Raises RmcliError when many different conversations became the same
        tokens.
        """
        sides = encode_apart(self.encoder, groups)
        if (fault := written_alike(groups, sides)) is not None:
            raise fault
        encoded = [_together(group, of_group) for group, of_group in zip(groups, sides, strict=True)]
        whole = [entry for entry in encoded if isinstance(entry, TokenGroup)]
        advance(len(groups) - len(whole))
        scores = iter(self.runner.run(whole, advance))
        return [_finite(entry, next(scores)) if isinstance(entry, TokenGroup) else entry for entry in encoded]

    def score_each(self, groups: Sequence[PreferenceGroup]) -> list[list[Score]]:
        """Per group and conversation a Score: one that cannot be scored is an error in its place.

        What is odd of them is noted. Different conversations that became the same tokens have the same score.
        """
        sides = encode_apart(self.encoder, groups)
        if (fault := written_alike(groups, sides)) is not None:
            output.warn(fault.message)
        _say_noted([side for of_group in sides for side in of_group])
        return self.score_sides(sides)

    def score_tokens(self, groups: Sequence[TokenGroup], advance: Callable[[int], None]) -> list[Scored | str]:
        """Per group of a prepared set, whose answers share their prefix already, its scores, or why it has none."""
        return [
            _finite(group, scores) for group, scores in zip(groups, self.runner.run(groups, advance), strict=True)
        ]

    def score_sides(
        self, sides: Sequence[Sequence[TokenGroup | str]], advance: Callable[[int], None] = lambda count: None
    ) -> list[list[Score]]:
        """The same of tokens: per group, conversations that stand alone, or why one has none.

        `advance` is told of groups that are done, where any of their conversations can be scored.
        """
        good = [[side for side in of_group if isinstance(side, TokenGroup)] for of_group in sides]
        scores = iter(self.runner.run([share(of_group) for of_group in good if of_group], advance))
        results = []
        for of_group, some in zip(sides, good, strict=True):
            values = iter(next(scores) if some else ())
            results.append([_as_score(side, values) for side in of_group])
        return results


def _together(group: PreferenceGroup, sides: Sequence[TokenGroup | str]) -> TokenGroup | str:
    problem = next((side for side in sides if isinstance(side, str)), None)
    whole = [side for side in sides if isinstance(side, TokenGroup)]
    return share(whole, group.comparisons) if problem is None else problem


def _finite(tokens: TokenGroup, scores: list[float]) -> Scored | str:
    return Scored(tokens, scores) if all(map(isfinite, scores)) else NOT_FINITE


def _as_score(side: TokenGroup | str, values: Iterator[float]) -> Score:
    if isinstance(side, str):
        return Score(None, error=side)
    value = next(values)
    return Score(value, side.truncated) if isfinite(value) else Score(None, side.truncated, NOT_FINITE)


def _say_noted(sides: Sequence[TokenGroup | str]) -> None:
    noted = Counter(name for side in sides if isinstance(side, TokenGroup) for name in side.noted)
    for name, count in noted.items():
        output.warn(f"{count:,} of {len(sides):,} conversations: {NOTED[name]}")
