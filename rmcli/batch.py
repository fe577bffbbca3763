"""Token groups to tensors: one packed row with its layout, or one padded batch.

Axes: T tokens of the row, S scores (all responses of all groups), N pairs, B conversations, L padded length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rmcli.attention import PackedLayout, Segment
from rmcli.records import Rows, TokenGroup


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

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()


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


@dataclass(frozen=True)
class Pairs:
    """Which score should beat which. `chosen`, `rejected`: (N,) indices into S; `weights`: (N,) float32."""

    chosen: Tensor
    rejected: Tensor
    weights: Tensor


def build_packed(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay the groups end to end: P1 C1 R1 P2 C2 R2 ..."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    score_index: list[int] = []
    start = 0
    for group in groups:
        prefix_start, prefix_length = start, len(group.prefix)
        tokens.append(group.prefix)
        positions.append(np.arange(prefix_length))
        start += prefix_length
        for number, response in enumerate(group.responses):
            tokens.append(response)
            positions.append(np.arange(prefix_length, prefix_length + len(response)))
            if number == 0:
                segments.append(Segment(prefix_start, prefix_length + len(response), prefix_start, 0))
            else:
                segments.append(Segment(start, len(response), prefix_start, prefix_length))
            start += len(response)
            score_index.append(start - 1)
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None].to(device),
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64))[None].to(device),
        score_index=torch.tensor(score_index, device=device),
        layout=PackedLayout.from_segments(tuple(segments), device),
    )


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


def build(
    rows: Rows, groups: Sequence[TokenGroup], pad_token_id: int, device: torch.device | str = "cpu"
) -> PackedBatch | SingleBatch | PaddedBatch:
    """The batch for `rows`: packed, single or padded."""
    if rows == "packed":
        return build_packed(groups, device)
    return build_single(groups, device) if rows == "single" else build_padded(groups, pad_token_id, device)


def build_pairs(groups: Sequence[TokenGroup], device: torch.device | str = "cpu") -> Pairs:
    """Response 0 of each group against response 1: every group must be a pair."""
    assert all(len(group.responses) == 2 for group in groups)
    offsets = np.cumsum([0, *(len(group.responses) for group in groups)])[:-1]
    chosen = torch.from_numpy(offsets.astype(np.int64)).to(device)
    weights = torch.tensor([group.weight for group in groups], dtype=torch.float32, device=device)
    return Pairs(chosen, chosen + 1, weights)
