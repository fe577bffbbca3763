"""What one process of a sequence group has of a packed row, a run of its tokens: in place of the row's layout.

Axes: T tokens of the row, N processes of the group, S scores.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from rmcli.model.attention.layout import PackedLayout
from rmcli.parallel import adjoints
from rmcli.parallel.sequence import SequenceGroup


@dataclass(frozen=True)
class RowShare:
    """Tokens `start` to `start + num_tokens` of a row, whose layout is `whole`, filled up so that it divides."""

    whole: PackedLayout
    group: SequenceGroup

    @staticmethod
    def of(layout: PackedLayout, group: SequenceGroup) -> "RowShare":
        """Two tokens at least for each process: an axis of one would not be known from a batch of one."""
        num_tokens = max(2 * group.size, layout.num_tokens + -layout.num_tokens % group.size)
        return RowShare(layout.filled_up(num_tokens), group)

    @property
    def num_tokens(self) -> int:
        """Of this process."""
        return self.whole.num_tokens // self.group.size

    @property
    def start(self) -> int:
        return self.group.rank * self.num_tokens

    def take(self, row: Tensor) -> Tensor:
        """(1, T, ...) -> (1, T / N, ...), this process's own; zeros, such as token 0, where the row is filled up."""
        missing = self.whole.num_tokens - row.shape[1]
        return pad(row, (0, 0) * (row.ndim - 2) + (0, missing)).narrow(1, self.start, self.num_tokens)

    def put_together(self, own: Tensor) -> Tensor:
        """(1, T / N, ...) -> (1, T, ...), all processes' tokens on each, those that fill the row up included."""
        before, after = self.start, self.whole.num_tokens - self.start - self.num_tokens
        return adjoints.add_up(pad(own, (0, 0) * (own.ndim - 2) + (before, after)), self.group)

    def take_scores(self, tensor: Tensor, axis: int) -> Tensor:
        """All S reward positions, on each process, of a tensor over its own tokens.

        A position is one process's: the others add zeros. A process without any does the same as the others.
        """
        own = self.whole.score_index - self.start
        elsewhere = (own < 0) | (own >= self.num_tokens)
        found = tensor.index_select(axis, own.clamp(0, self.num_tokens - 1))
        elsewhere = elsewhere.reshape([-1 if number == axis else 1 for number in range(found.ndim)])
        return adjoints.add_up(torch.where(elsewhere, torch.zeros_like(found), found), self.group)

    @property
    def at_scores(self) -> "RowShare":
        return RowShare(self.whole.at_scores, self.group)
