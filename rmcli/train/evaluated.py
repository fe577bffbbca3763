"""All sets of a run evaluated, one after the other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from rmcli.records import BatchKind
from rmcli.train.eval_sets import EvalSet
from rmcli.train.evaluate import evaluate
from rmcli.train.job import Job
from rmcli.train.scored import Scored, are_finite


@dataclass(frozen=True)
class EvaluatedSet:
    """Figures by name, and the scored groups on the first process, by source and row; `seconds` that it took.

    `num_repeated`: groups left out of `scored`, as they repeat a row's.
    """

    of: EvalSet
    figures: dict[str, Any]
    scored: Sequence[Scored]
    seconds: float
    num_repeated: int = 0

    @property
    def named(self) -> dict[str, Any]:
        """As metrics.jsonl has them."""
        return self.of.named(self.figures)

    @property
    def first_answers(self) -> list[int]:
        """(groups,) the place of each group's first answer among those of all."""
        return [0, *accumulate(len(group.scores) for group in self.scored)][:-1]

    @property
    def told(self) -> str:
        figures = self.figures
        return (
            f"{self.of.title} accuracy {figures['accuracy']:.3f}, loss {figures['loss']:.4f}, "
            f"margin {figures['margin']:.3f}, {figures['pairs']} pairs"
        )


def each_row_once(one: EvaluatedSet) -> EvaluatedSet:
    """Without what a weight above 1 repeats: a train split holds such a row several times, which tells no more."""
    kept = {(scored.source_id, scored.row_id): scored for scored in reversed(one.scored)}
    scored = list(reversed(kept.values()))
    return replace(one, scored=scored, num_repeated=len(one.scored) - len(scored))


def evaluate_all(network: Any, job: Job, kind: BatchKind) -> list[EvaluatedSet]:
    """The pairs held out and each set with a name; without those that have no pairs."""
    found = []
    for one in job.eval_sets:
        started = time.perf_counter()
        evaluation = evaluate(network, one.split, job.config, job.reward.pad_token_id, kind, job.spread)
        if evaluation.figures:
            seconds = time.perf_counter() - started
            found.append(EvaluatedSet(one, evaluation.figures, evaluation.scored, seconds))
    return found


def not_finite(evaluated: Sequence[EvaluatedSet]) -> str | None:
    """A sentence on the sets with a score that is not finite; None where all are."""
    bad = ", ".join(one.of.title for one in evaluated if not are_finite(one.scored))
    return f"scores of {bad} are not finite: their calibration is not told (null)" if bad else None
