"""Token groups to tensors: one packed row with its layout, or one padded batch.

Axes: T tokens of the row, S scores (all responses of all groups), B conversations, L padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmcli.model.attention.layout import BatchShape, PackedLayout, Segment, to_device
from rmcli.model.losses import Targets
from rmcli.records import BatchKind, Comparison, TokenGroup


@dataclass(frozen=True)
class PackedBatch:
    """One packed row, or several end to end.

    `input_ids`, `position_ids`: (1, T); positions of each response go on from its prefix.
    `score_index`: (S,) the row position of each response's last token, the reward token.
    """

    input_ids: Tensor
    position_ids: Tensor
    score_index: Tensor
    layout: PackedLayout
    num_tokens: int  # without those that fill the row up


@dataclass(frozen=True)
class PaddedBatch:
    """Whole conversations, padded on the right.

    `input_ids`, `attention_mask`: (B, L); `score_index`: (B,) the position of each last token. B equals S.
    """

    input_ids: Tensor
    attention_mask: Tensor
    score_index: Tensor

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()


@dataclass(frozen=True)
class SingleBatch:
    """Conversations that are each run in a forward of their own, in the order of the scores."""

    conversations: tuple[PaddedBatch, ...]

    @property
    def num_tokens(self) -> int:
        return sum(one.num_tokens for one in self.conversations)


def build_packed(
    groups: Sequence[TokenGroup], device: torch.device | str = "cpu", shape: BatchShape | None = None
) -> PackedBatch:
    """Lay the groups end to end: P1 C1 R1 P2 C2 R2 ...

    With a `shape` the row is filled up to it, or to a larger one where it is too small: `layout.shape`.
    """
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    for group in groups:
        prefix_length = len(group.prefix)
        tokens.append(group.prefix)
        positions.append(np.arange(prefix_length))
        for response in group.responses:
            tokens.append(response)
            positions.append(np.arange(prefix_length, prefix_length + len(response)))
    segments = segments_of(groups)
    num_tokens = sum(group.num_tokens for group in groups)
    if shape is not None:
        shape = shape.grown_for(segments)
        for filling in shape.filling(num_tokens):
            tokens.append(np.zeros(filling.length))
            positions.append(np.arange(filling.length))
    layout = PackedLayout.from_segments(tuple(segments), device, shape)
    return PackedBatch(
        input_ids=to_device(torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None], device),
        position_ids=to_device(torch.from_numpy(np.concatenate(positions).astype(np.int64))[None], device),
        score_index=layout.score_index,
        layout=layout,
        num_tokens=num_tokens,
    )


def segments_of(groups: Sequence[TokenGroup]) -> list[Segment]:
    """One for each response of the groups, end to end; a group's prefix rides with its first."""
    segments: list[Segment] = []
    start = 0
    for group in groups:
        prefix_start, prefix_length = start, len(group.prefix)
        start += prefix_length
        for number, response in enumerate(group.responses):
            if number == 0:
                segments.append(Segment(prefix_start, prefix_length + len(response), prefix_start, 0))
            else:
                segments.append(Segment(start, len(response), prefix_start, prefix_length))
            start += len(response)
    return segments


def build_padded(groups: Sequence[TokenGroup], pad_token_id: int, device: torch.device | str = "cpu") -> PaddedBatch:
    """Each conversation on its own line, the prompt repeated."""
    conversations = [np.concatenate([group.prefix, response]) for group in groups for response in group.responses]
    lengths = torch.tensor([len(conversation) for conversation in conversations])
    longest = int(lengths.max())
    input_ids = torch.full((len(conversations), longest), pad_token_id)
    for row, conversation in enumerate(conversations):
        input_ids[row, : len(conversation)] = torch.from_numpy(conversation.astype(np.int64))
    attention_mask = (torch.arange(longest) < lengths[:, None]).long()
    return PaddedBatch(input_ids.to(device), attention_mask.to(device), (lengths - 1).to(device))


def build_single(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> SingleBatch:
    """Each conversation alone, without padding."""
    whole = [
        TokenGroup(group.prefix[:0], (np.concatenate([group.prefix, response]),))
        for group in groups
        for response in group.responses
    ]
    return SingleBatch(tuple(build_padded([one], 0, device) for one in whole))


def build_batch(
    kind: BatchKind,
    groups: Sequence[TokenGroup],
    pad_token_id: int,
    device: torch.device | str = "cpu",
    shape: BatchShape | None = None,
) -> PackedBatch | SingleBatch | PaddedBatch:
    """The batch of this kind: packed (to a shape, if one is given), single or padded."""
    if kind == "packed":
        return build_packed(groups, device, shape)
    return build_single(groups, device) if kind == "single" else build_padded(groups, pad_token_id, device)


def trains_as_list(group: TokenGroup, loss_type: str) -> bool:
    """Whether Plackett-Luce takes the whole group as one list."""
    return loss_type == "plackett_luce" and group.ordered and len(group.responses) > 2


def comparisons_of(group: TokenGroup, loss_type: str) -> tuple[Comparison, ...]:
    """The comparisons that this loss can train pairwise.

    Focal is defined for plain preferences only. Plackett-Luce leaves out groups in which all are equal.
    """
    if loss_type == "focal":
        return tuple(comparison for comparison in group.comparisons if comparison.label == 1)
    if loss_type == "plackett_luce" and all(comparison.is_tie for comparison in group.comparisons):
        return ()
    return group.comparisons


def is_used(group: TokenGroup, loss_type: str) -> bool:
    """Whether there is anything in the group that this loss can learn from."""
    return bool(comparisons_of(group, loss_type))


def build_targets(groups: Sequence[TokenGroup], loss_type: str, device: torch.device | str = "cpu") -> Targets:
    """What the scores of these groups, in their order, are held against.

    Pairs of one group share its weight; a list has all of it.
    """
    pairs: list[tuple[int, int, float, float, float]] = []
    lists: list[tuple[list[int], float]] = []
    judged: list[tuple[int, int]] = []
    start = 0
    for group in groups:
        comparisons = comparisons_of(group, loss_type)
        if trains_as_list(group, loss_type):
            lists.append((list(range(start, start + len(group.responses))), group.weight))
        else:
            share = group.weight / max(len(comparisons), 1)
            pairs += [(start + c.first, start + c.second, c.label, c.margin, share) for c in comparisons]
        judged += [(start + better, start + worse) for better, worse in (c.ends for c in comparisons if not c.is_tie)]
        start += len(group.responses)
    longest = max((len(order) for order, _ in lists), default=0)
    orders = [order + [-1] * (longest - len(order)) for order, _ in lists]

    def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return to_device(torch.tensor(values, dtype=dtype), device)

    return Targets(
        first=column([pair[0] for pair in pairs], torch.int64),
        second=column([pair[1] for pair in pairs], torch.int64),
        labels=column([pair[2] for pair in pairs], torch.float32),
        margins=column([pair[3] for pair in pairs], torch.float32),
        weights=column([pair[4] for pair in pairs], torch.float32),
        orders=to_device(torch.tensor(orders, dtype=torch.int64).reshape(len(orders), longest), device),
        order_weights=column([weight for _, weight in lists], torch.float32),
        better=column([better for better, _ in judged], torch.int64),
        worse=column([worse for _, worse in judged], torch.int64),
    )
