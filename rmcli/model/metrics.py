"""What is reported of scores: accuracy, margin, and the range of the scores."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence (z = 1.96), seen `share` in `count` > 0 (Wilson 1927)."""
    shrink = 1 + z * z / count
    center = (share + z * z / (2 * count)) / shrink
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrink
    return center - half, center + half


@dataclass
class PairMetrics:
    """Sums over pairs, kept as tensors so that adding to them never waits for the device.

    A tie counts one half in the accuracy. Loss is the pair loss without the penalty.
    """

    num_pairs: int = 0
    correct: Tensor | float = 0.0
    margin: Tensor | float = 0.0
    score_sum: Tensor | float = 0.0
    num_scores: int = 0
    score_min: Tensor | float = float("inf")
    score_max: Tensor | float = float("-inf")

    def add(self, scores_S: Tensor, better_M: Tensor, worse_M: Tensor) -> None:
        """Scores and the (M,) indices of each pair's members among them."""
        scores_S = scores_S.detach()
        difference = scores_S[better_M] - scores_S[worse_M]
        self.num_pairs += len(difference)
        self.num_scores += len(scores_S)
        self.correct += (difference > 0).sum() + 0.5 * (difference == 0).sum()
        self.margin += difference.sum()
        self.score_sum += scores_S.sum()
        smallest, largest = scores_S.aminmax()
        # Tensors from the first batch on: a plain number would have to be brought to the device.
        lowest, highest = self.score_min, self.score_max
        self.score_min = torch.minimum(lowest, smallest) if isinstance(lowest, Tensor) else smallest
        self.score_max = torch.maximum(highest, largest) if isinstance(highest, Tensor) else largest

    def result(self) -> dict[str, float]:
        """Means and range as plain numbers; NaN where nothing was added to take a mean of."""
        pairs, scores = self.num_pairs or float("nan"), self.num_scores or float("nan")
        return {
            "accuracy": float(self.correct) / pairs,
            "margin": float(self.margin) / pairs,
            "score_mean": float(self.score_sum) / scores,
            "score_min": float(self.score_min),
            "score_max": float(self.score_max),
        }
