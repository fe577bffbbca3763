"""Whether a finished run has learned nothing that holds on other pairs: no error, but its model is of no use."""

import math
from collections.abc import Mapping
from typing import Any

from rmcli.metrics.intervals import wilson_interval

SMALLEST_RANGE = 1e-3  # of scores, or of their size where that is above 1: below, all answers are told the same
FEW_PAIRS = 100  # held out: an accuracy of fewer has an interval of 0.2 and more


def collapse_warning(summary: Mapping[str, Any]) -> str | None:
    """What is wrong with the run that ended with this summary, and the likely causes; None where nothing is.

    Either its scores hardly differ (on the pairs held out; without any, in the last log window), or its held-out
    accuracy cannot be told from chance while that of the training window can.
    """
    held_out = "eval_pairs" in summary
    prefix, where = ("eval_", "held-out scores") if held_out else ("", "scores of the last window")
    learned_nothing_yet = not held_out and summary["step"] == 1  # a new head is zero before the first update
    seen = _sameness(summary, prefix, where)
    if seen is not None and not learned_nothing_yet:
        return (
            f"{seen}: the model says the same of every answer. Likely causes: train.lr (or train.head_lr) is so "
            "high that the weights ran away, or there were too few steps, or too low a rate, to learn anything"
        )
    if not held_out or not summary["pairs"] or not summary["eval_pairs"]:
        return None
    pairs = summary["eval_pairs"]
    held_low, held_high = wilson_interval(summary["eval_accuracy"], pairs)
    train_low, train_high = wilson_interval(summary["accuracy"], summary["pairs"])
    if not held_low <= 0.5 <= held_high or train_low <= 0.5 <= train_high:
        return None
    few = f"only {pairs} pairs are held out, too few to tell (data.eval_fraction), or " if pairs < FEW_PAIRS else ""
    return (
        f"the held-out accuracy, {summary['eval_accuracy']:.3f} of {pairs} pairs ({held_low:.2f} to {held_high:.2f} "
        f"with 95 % confidence), may be chance, but that of training is {summary['accuracy']:.3f}. Likely causes: "
        f"{few}the training pairs are learned by heart (fewer train.max_epochs, a lower train.lr, more data), the "
        "labels held out are noise, or they are of another kind than those trained on (rmcli audit)"
    )


def _sameness(summary: Mapping[str, Any], prefix: str, where: str) -> str | None:
    """How the scores are alike: all of them, or the two of each pair; None where they differ."""
    lowest, highest = summary[f"{prefix}score_min"], summary[f"{prefix}score_max"]
    span = highest - lowest
    if not math.isfinite(span):
        return f"{where} are not finite"
    if span < SMALLEST_RANGE * max(1, abs(lowest), abs(highest)):
        return f"all {where} lie within {span:.2g} around {(lowest + highest) / 2:.3g}"
    if (summary[f"{prefix}accuracy"], summary[f"{prefix}margin"]) == (0.5, 0):
        return f"the two {where} of every pair are equal"
    return None
