"""What a card says of the score's quality: held-out accuracy with its interval, and whether length decides it."""

from collections.abc import Mapping
from dataclasses import dataclass

from rmcli.metrics.intervals import wilson_interval


@dataclass(frozen=True)
class Accuracy:
    """Of so many pairs, with the interval in which the true one lies with 95 % confidence."""

    share: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.share, self.pairs)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.3f} ({low:.3f} to {high:.3f}) on {self.pairs:,} pairs"


def accuracy(figures: Mapping[str, float], which: str = "") -> Accuracy | None:
    """Of all pairs, or `which`: `shorter_` or `longer_`; None where it was not measured."""
    share, pairs = figures.get(f"{which}accuracy"), figures.get(f"{which}pairs")
    if share is None or not pairs or not 0 <= share <= 1:
        return None
    return Accuracy(float(share), int(pairs))


def about_length(figures: Mapping[str, float]) -> list[str]:
    """Sentences on length: how often the longer answer is the better one, and how the score does either way."""
    shorter, longer = accuracy(figures, "shorter_"), accuracy(figures, "longer_")
    if "shorter_pairs" not in figures or "longer_pairs" not in figures:
        return ["Length bias was not measured: no evaluation of this checkpoint tells pairs apart by length."]
    unequal = int(figures["shorter_pairs"] + figures["longer_pairs"])
    if not unequal:
        return ["Length bias cannot be told: in no held-out pair is one answer longer than the other."]
    said = [
        f"In {int(figures['longer_pairs']):,} of {unequal:,} held-out pairs of unequal length the better answer is "
        "the longer one."
    ]
    said += [f"Accuracy where the better answer is the longer one: {longer}."] if longer else []
    said += [f"Accuracy where it is the shorter one: {shorter}."] if shorter else []
    if longer and shorter:
        said.append(_verdict(longer, shorter))
    return said


def _verdict(longer: Accuracy, shorter: Accuracy) -> str:
    if longer.interval[0] > shorter.interval[1]:
        return "The score favours longer answers: the intervals do not meet."
    if shorter.interval[0] > longer.interval[1]:
        return "The score favours shorter answers: the intervals do not meet."
    return "The intervals meet: these pairs show no bias towards length, and do not prove that there is none."
