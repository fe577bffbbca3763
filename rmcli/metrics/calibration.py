"""Whether sigmoid(margin) is the probability that the better answer is better, as the ranking loss has it.

Bradley-Terry: P(first is better) = sigmoid(score of the first - score of the second).
"""

from typing import Any

import numpy as np

from rmcli.metrics.judged import Floats, Judged, right

BINS = 10  # of the reliability curve, equally wide from 1/2 to 1
_FLATTEST, _STEEPEST = 1e-4, 1e4  # what a margin of the usual size is multiplied by to find a temperature


def calibration(judged: Judged) -> dict[str, Any]:
    """Figures of sigmoid(margin); empty without any pair.

    `ece`: expected calibration error, the mean gap of confidence and accuracy over the bins, weighted by their pairs
    (Naeini 2015). A pair's confidence is sigmoid(|margin|), at least 1/2; its accuracy is the label's probability of
    the answer that the score prefers. `curve`: per bin that has pairs its borders, `pairs`, mean `confidence`,
    `accuracy`. `brier`, `log_loss`: of the labels, the latter in nats (ln 2 of a
    coin). `temperature`: what margins are to be divided by for the smallest log-loss (Guo 2017), None where there is
    no such number: all pairs are right, or no scale is better than a coin. `log_loss_at_temperature` goes with it.
    """
    margins, labels = judged.margins, judged.labels
    if not len(margins):
        return {}
    curve = _curve(margins, labels)
    temperature = fitted_temperature(margins, labels)
    at_best = None if temperature is None else log_loss(margins / temperature, labels)
    return {
        "ece": sum(one["pairs"] * abs(one["accuracy"] - one["confidence"]) for one in curve) / len(margins),
        "brier": float(np.mean((labels - sigmoid(margins)) ** 2)),
        "log_loss": log_loss(margins, labels),
        "temperature": temperature,
        "log_loss_at_temperature": at_best,
        "curve": curve,
    }


def sigmoid(values: Floats) -> Floats:
    """Without overflow, however large the margins are."""
    return np.exp(-np.logaddexp(0.0, -values))


def log_loss(margins: Floats, labels: Floats) -> float:
    """Mean cross-entropy of the labels under sigmoid(margin), in nats."""
    return float(np.mean(np.logaddexp(0.0, -margins) + (1 - labels) * margins))


def fitted_temperature(margins: Floats, labels: Floats) -> float | None:
    """The minimum of a convex function of 1 / temperature, where its slope changes sign."""
    usual = float(np.abs(margins).mean())

    def slope(scale: float) -> float:
        return float(np.mean(margins * (sigmoid(scale * margins) - labels)))

    if not usual:
        return None
    low, high = _FLATTEST / usual, _STEEPEST / usual
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def _curve(margins: Floats, labels: Floats) -> list[dict[str, Any]]:
    confidence = sigmoid(np.abs(margins))
    correct = labels * right(margins) + (1 - labels) * right(-margins)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    return [
        {
            "low": 0.5 + number / (2 * BINS),
            "high": 0.5 + (number + 1) / (2 * BINS),
            "pairs": int(within.sum()),
            "confidence": float(confidence[within].mean()),
            "accuracy": float(correct[within].mean()),
        }
        for number in range(BINS)
        if (within := bins == number).any()
    ]
