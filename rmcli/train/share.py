"""One rank's share of a round, the forwards that all ranks run side by side, as tensors.

All ranks run as many forwards, and conversations that are run alone as often: what a rank lacks is filled up with
conversations of two tokens, whose scores are cut off. They take part in what ranks exchange, and add nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmcli.model.attention.layout import BatchShape
from rmcli.model.batch import build_batch, build_targets
from rmcli.model.losses import Targets
from rmcli.records import BatchKind, TokenGroup

_TOKEN = np.zeros(1, np.int32)


@dataclass(frozen=True)
class Forward:
    """One forward and backward of this rank, on the device.

    `num_scores` and `num_tokens` are those of its groups; it may have none. What fills it up comes after them.
    """

    batch: Any  # PackedBatch, SingleBatch or PaddedBatch
    targets: Targets
    num_scores: int
    num_tokens: int

    def own(self, scores_S: Tensor) -> Tensor:
        """(num_scores,) of the scores of the batch those that count; from none of them no gradient but zero comes."""
        return scores_S if len(scores_S) == self.num_scores else scores_S[: self.num_scores]


@dataclass(frozen=True)
class Share:
    """The groups of this rank in a round, and what fills them up: one group or none."""

    groups: list[TokenGroup]
    filling: list[TokenGroup]

    @staticmethod
    def of(side_by_side: Sequence[list[TokenGroup]], rank: int, kind: BatchKind) -> "Share":
        """`side_by_side`: each rank's groups of the round, of which at least one has any."""
        numbers = [sum(len(group.responses) for group in groups) for groups in side_by_side]
        wanted = max(numbers) if kind == "single" else numbers[rank] or 2
        missing = wanted - numbers[rank]
        filling = [TokenGroup(_TOKEN, (_TOKEN,) * missing, comparisons=())] if missing else []
        return Share(side_by_side[rank], filling)

    @property
    def all_groups(self) -> list[TokenGroup]:
        return [*self.groups, *self.filling]

    @property
    def num_scores(self) -> int:
        """Of its groups, which come before what fills them up."""
        return sum(len(group.responses) for group in self.groups)

    def forward(
        self,
        kind: BatchKind,
        loss_type: str,
        pad_token_id: int,
        device: torch.device,
        shape: BatchShape | None = None,
    ) -> Forward:
        batch = build_batch(kind, self.all_groups, pad_token_id, device, shape)
        filled = sum(group.num_tokens if kind == "packed" else group.num_unshared_tokens for group in self.filling)
        return Forward(
            batch=batch,
            targets=build_targets(self.groups, loss_type, device),
            num_scores=self.num_scores,
            num_tokens=batch.num_tokens - filled,
        )
