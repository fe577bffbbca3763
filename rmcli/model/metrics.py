"""What is reported of scores: accuracy, margin, and the range of the scores."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmcli.parallel import collectives, world

TOTALS = ("correct", "margin", "score_sum", "score_min", "score_max")
_MOST_PARTS = 256


@dataclass
class PairMetrics:
    """Sums over pairs and scores, kept as tensors so that adding to them never waits for the device.

    A tie counts one half in the accuracy. `parts`: (5,) of each forward, in order: pairs in the right order, sum of
    their margins, sum of the scores, the smallest and the largest score. Counts are tensors once they are `summed`.
    """

    num_pairs: int | Tensor = 0
    num_scores: int | Tensor = 0
    parts: list[Tensor] = field(default_factory=list)

    def add(self, scores_S: Tensor, better_M: Tensor, worse_M: Tensor) -> None:
        """Scores, maybe none, and the (M,) indices of each pair's members among them."""
        scores_S = scores_S.detach()
        difference = scores_S[better_M] - scores_S[worse_M]
        self.num_pairs += len(difference)
        self.num_scores += len(scores_S)
        correct = (difference > 0).sum() + 0.5 * (difference == 0).sum()
        nothing = scores_S.new_full((), float("inf"))
        smallest, largest = scores_S.aminmax() if len(scores_S) else (nothing, -nothing)
        part = torch.stack([correct.to(scores_S.dtype), difference.sum(), scores_S.sum(), smallest, largest])
        self._take_in([part])

    def merge(self, other: "PairMetrics") -> None:
        """Bit by bit as if what was added to the other one had been added here."""
        self.num_pairs += other.num_pairs
        self.num_scores += other.num_scores
        self._take_in(other.parts)

    def _take_in(self, parts: list[Tensor]) -> None:
        self.parts += parts
        if len(self.parts) >= _MOST_PARTS:
            self.parts = [self._total()]

    def _total(self) -> Tensor:
        """(5,) over all parts, one added after the other."""
        like = self.parts[0] if self.parts else torch.empty(0)
        sums, smallest = like.new_zeros(3), like.new_full((1,), float("inf"))
        largest = -smallest
        for part in self.parts:
            sums = sums + part[:3]
            smallest, largest = smallest.minimum(part[3]), largest.maximum(part[4])
        return torch.cat([sums, smallest, largest])

    def total(self) -> dict[str, Tensor]:
        """Sums and range by name, on the device."""
        return dict(zip(TOTALS, self._total(), strict=True))

    def summed(self, device: torch.device | str, share: float = 1.0) -> "PairMetrics":
        """The same over all processes; sums times `share`, where several processes count the same scores.

        No device is waited for. With one process it is this one itself. `device`: that of the scores, where all
        processes meet, those that have no scores too.
        """
        if world.size() == 1:
            return self
        total = self._total().to(device, torch.float64)
        counts = [total.new_full((), float(count)) for count in (self.num_pairs, self.num_scores)]
        sums = collectives.add_up(torch.cat([torch.stack(counts), total[:3]])) * share
        lowest, highest = collectives.largest(torch.stack([-total[3], total[4]]))
        num_pairs, num_scores = sums[:2].round()
        return PairMetrics(num_pairs, num_scores, [torch.cat([sums[2:], torch.stack([-lowest, highest])])])

    def result(self) -> dict[str, float]:
        """Means and range as plain numbers; NaN where nothing was added to take a mean of."""
        pairs, scores = int(self.num_pairs) or float("nan"), int(self.num_scores) or float("nan")
        total = {name: float(value) for name, value in self.total().items()}
        return {
            "accuracy": total["correct"] / pairs,
            "margin": total["margin"] / pairs,
            "score_mean": total["score_sum"] / scores,
            "score_min": total["score_min"],
            "score_max": total["score_max"],
        }
