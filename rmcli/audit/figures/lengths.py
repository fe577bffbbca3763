"""Lengths in tokens: percentiles and a histogram."""

from dataclasses import dataclass, field

import numpy as np

from rmcli.audit.figures.values import Figures

HISTOGRAM_BINS = 30


@dataclass
class Lengths:
    """How many values there are of each length: exact, and no larger than the longest."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def add(self, values: np.ndarray) -> None:
        more = np.bincount(values, minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    def figures(self) -> Figures:
        """Percentiles are lengths that occur: the shortest that so many per cent do not exceed."""
        number = int(self.counts.sum())
        if not number:
            return {"number": 0}
        total = np.cumsum(self.counts)
        lengths = np.arange(len(self.counts))
        longest = int(lengths[self.counts > 0].max())
        width = max(-(-(longest + 1) // HISTOGRAM_BINS), 1)
        bins = -(-(longest + 1) // width)
        padded = np.zeros(bins * width, dtype=np.int64)
        padded[: longest + 1] = self.counts[: longest + 1]
        percentiles = {
            f"p{share}": int(np.searchsorted(total, np.ceil(share / 100 * number))) for share in (10, 50, 90, 99)
        }
        return {
            "number": number,
            "mean": float((lengths * self.counts).sum() / number),
            "min": int(lengths[self.counts > 0].min()),
            **percentiles,
            "max": longest,
            "histogram": {"bin_tokens": width, "counts": padded.reshape(bins, width).sum(axis=1).tolist()},
        }
