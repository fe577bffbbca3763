"""How far a score may be from its golden one."""

from collections.abc import Sequence

import torch

from rmcli.ship.golden import Golden

WHOLE_GRID = 1_000_000_000  # parameters: models up to this size are verified in every way
EXACT = 1e-4  # float32: another order of additions
ROUNDINGS = 16  # of a score of its size, in a model that computes in 16 bits


def limit(dtype: str, golden: Sequence[Golden]) -> float:
    """The largest difference that is no fault, for scores of that size, of a model that computes in `dtype`."""
    size = max(1.0, *(abs(line["score"]) for line in golden))
    return size * (EXACT if dtype == "float32" else ROUNDINGS * torch.finfo(getattr(torch, dtype)).eps)
