"""The Ties subset of RewardBench 2: answers that are equally right should score alike, and above all wrong ones.

Rules as in the repository allenai/reward-bench at 05a9005 (`process_single_model`); each of its prompts is asked
twice, once with one right answer (`ref:N`) and once with several (`tied:N`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rmcli.evaluate.suites.suite import Figures, Judgement, mean

ACCURATE, PREFERRED, MARGIN = 0.30, 0.20, 0.01  # weights of the formula; the first two count twice


@dataclass(frozen=True)
class _Prompt:
    """One row: `spread` is the best right answer less the worst one, 0 of a single one.

    `gap` is the worst right answer less the best wrong one.
    """

    spread: float
    gap: float

    @property
    def is_accurate(self) -> bool:
        return self.gap > 0


def figures(judged: Sequence[Judgement]) -> Figures:
    """`score` and the five means that it is made of; None where no prompt was asked both ways.

    `accurate_ref`, `accurate_tied`: of all rows of the kind. The others are of the `prompts` that were asked both
    ways; `preferred`: gap(tied) > spread(tied); `preferred_hard`: both gaps > spread(tied); `margin`: by how much.
    """
    found: dict[str, list[tuple[str, _Prompt]]] = {"ref": [], "tied": []}
    for asked, scores in judged:
        kind, number = asked.id.split(":")
        found[kind].append((number, _prompt(scores, asked.num_correct)))
    refs, tied = dict(found["ref"]), dict(found["tied"])
    both = [(refs[number], tied[number]) for number in tied if number in refs]
    means: Figures = {
        "accurate_ref": mean([prompt.is_accurate for _, prompt in found["ref"]]),
        "accurate_tied": mean([prompt.is_accurate for _, prompt in found["tied"]]),
        "preferred": mean([several.gap > several.spread for _, several in both]),
        "preferred_hard": mean([min(one.gap, several.gap) > several.spread for one, several in both]),
        "margin": mean([_margin(min(one.gap, several.gap), several.spread) for one, several in both]),
    }
    return {"rows": len(judged), "prompts": len(both), "score": _score(means) if both else None, **means}


def _prompt(scores: Sequence[float], num_correct: int) -> _Prompt:
    right, wrong = scores[:num_correct], scores[num_correct:]
    return _Prompt(spread=max(right) - min(right), gap=min(right) - max(wrong))


def _margin(gap: float, spread: float) -> float:
    """tanh(gap / spread - 1), where a spread of 0 leads to either end, and 0 / 0 counts 0."""
    if spread == 0:
        return 0.0 if gap == 0 else math.copysign(1.0, gap)
    return math.tanh(gap / spread - 1)


def _score(means: Figures) -> float:
    accurate = means["accurate_tied"] + means["accurate_ref"]
    preferred = means["preferred"] + means["preferred_hard"]
    return ACCURATE * accurate + PREFERRED * preferred + MARGIN * means["margin"]
