"""How sure a figure is: Wilson's interval of a share, and the paired bootstrap of two models on the same prompts."""

import math

import numpy as np

from rmcli.metrics.judged import Floats, Judged, Whole

ROUNDS = 2_000  # resamples: the ends of the interval vary by some 2 % of its width from seed to seed
_AT_ONCE = 2**22  # numbers drawn together, 32 MiB


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence (z = 1.96), seen `share` in `count` > 0 (Wilson 1927)."""
    shrink = 1 + z * z / count
    center = (share + z * z / (2 * count)) / shrink
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / shrink
    return max(0.0, center - half), min(1.0, center + half)  # rounding leads past the ends


def mean_interval(values: Floats, z: float = 1.96) -> tuple[float, float] | None:
    """Where the true mean of the (M,) values lies with 95 % confidence, by the normal distribution.

    The mean +- z standard errors; None of fewer than two values.
    """
    if len(values) < 2:
        return None
    mean, half = float(values.mean()), z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


def accuracy(judged: Judged) -> dict[str, float | int | list[float] | None]:
    """`pairs`, and of them `accuracy` (a tie of scores counts 1/2) and its 95 % `interval`; None without any pair.

    The interval counts groups, not pairs: several comparisons of one group are not independent.
    """
    if not judged.num_pairs:
        return {"pairs": 0, "accuracy": None, "interval": None}
    share, groups = float(judged.right.mean()), len(np.unique(judged.groups))
    return {"pairs": judged.num_pairs, "accuracy": share, "interval": [*wilson_interval(share, groups)]}


def paired_bootstrap(ours: Floats, theirs: Floats, groups: Whole, rounds: int = ROUNDS, seed: int = 0) -> dict:
    """Two models' (M,) values on the same pairs: mean `difference`, ours less theirs, and its 95 % `interval`.

    Whole groups are drawn, with replacement (Efron 1979, the percentile interval). `favours_ours`: the share of
    resamples in which ours is ahead, half of those without a difference among them. The same seed, the same result.
    """
    numbers, places = np.unique(groups, return_inverse=True)
    prompts = len(numbers)
    sums = np.bincount(places, ours - theirs, prompts)
    counts = np.bincount(places, minlength=prompts).astype(np.float64)
    generator = np.random.default_rng(seed)
    found = []
    at_once = max(1, _AT_ONCE // prompts)
    for start in range(0, rounds, at_once):
        drawn = generator.integers(prompts, size=(min(at_once, rounds - start), prompts))
        found.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    means = np.concatenate(found)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(sums.sum() / counts.sum()),
        "interval": [float(low), float(high)],
        "favours_ours": float(np.mean((means > 0) + 0.5 * (means == 0))),
        "rounds": rounds,
        "seed": seed,
    }
