"""Scored answers, and which of them is said to be better: what every figure is made of.

S: answers, M: comparisons that say which answer is better.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rmcli.records import TokenGroup

Floats: TypeAlias = NDArray[np.float64]
Whole: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Answers with their scores, and comparisons between them.

    `scores`, `tokens`: (S,) the raw score, and tokens of the answer after what the answers to its prompt share.
    `better`, `worse`: (M,) places among the answers. `labels`: (M,) the probability that `better` is better, above
    1/2. `groups`: (M,) which group a comparison is of, counted from 0: those of one group are not independent.
    `num_ties`: comparisons beside these that call both answers equally good.
    """

    scores: Floats
    tokens: Whole
    better: Whole
    worse: Whole
    labels: Floats
    groups: Whole
    num_ties: int = 0

    @classmethod
    def of(cls, scored: Iterable[tuple[TokenGroup, Sequence[float]]]) -> "Judged":
        """Of groups and the score of each of their answers."""
        scores: list[float] = []
        tokens: list[int] = []
        pairs: list[tuple[int, int, float, int]] = []
        ties = 0
        for number, (group, values) in enumerate(scored):
            start = len(scores)
            scores += values
            tokens += [len(response) for response in group.responses]
            ties += sum(one.is_tie for one in group.comparisons)
            for one in group.comparisons:
                if not one.is_tie:
                    better, worse = one.ends
                    pairs.append((start + better, start + worse, max(one.label, 1 - one.label), number))
        return cls(
            scores=np.asarray(scores, np.float64),
            tokens=np.asarray(tokens, np.int64),
            better=np.asarray([pair[0] for pair in pairs], np.int64),
            worse=np.asarray([pair[1] for pair in pairs], np.int64),
            labels=np.asarray([pair[2] for pair in pairs], np.float64),
            groups=np.asarray([pair[3] for pair in pairs], np.int64),
            num_ties=ties,
        )

    @classmethod
    def joined(cls, parts: Sequence["Judged"]) -> "Judged":
        """All parts in order, each with groups of its own."""
        parts = [cls.of([]), *parts]  # nothing has a type, too
        answers = np.cumsum([0, *(len(part.scores) for part in parts)])
        groups = np.cumsum([0, *(part.num_groups for part in parts)])
        moved = [
            replace(part, better=part.better + start, worse=part.worse + start, groups=part.groups + first)
            for part, start, first in zip(parts, answers[:-1], groups[:-1], strict=True)
        ]
        names = [one.name for one in fields(cls) if one.name != "num_ties"]
        columns = {name: np.concatenate([getattr(part, name) for part in moved]) for name in names}
        return cls(**columns, num_ties=sum(part.num_ties for part in parts))

    @property
    def num_pairs(self) -> int:
        return len(self.better)

    @property
    def num_groups(self) -> int:
        """One more than the largest number of a group: groups without a comparison after it do not count."""
        return int(self.groups.max()) + 1 if len(self.groups) else 0

    @property
    def margins(self) -> Floats:
        """(M,) the better answer's score less the worse one's: above 0 is right."""
        return self.scores[self.better] - self.scores[self.worse]

    @property
    def right(self) -> Floats:
        """(M,) 1 where the better answer has the higher score, 1/2 where both have one score, else 0."""
        return right(self.margins)

    @property
    def longer_by(self) -> Whole:
        """(M,) tokens by which the better answer is the longer one."""
        return self.tokens[self.better] - self.tokens[self.worse]

    def only(self, chosen: NDArray[np.bool_]) -> "Judged":
        """The same answers with the comparisons of which the (M,) mask says so."""
        columns = {name: getattr(self, name)[chosen] for name in ("better", "worse", "labels", "groups")}
        return replace(self, **columns, num_ties=0)


def right(margins: Floats) -> Floats:
    """1 above 0, 1/2 at 0, else 0."""
    return (margins > 0) + 0.5 * (margins == 0)
