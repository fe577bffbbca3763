"""Which tokens of a packed row see which: built once per row by `batch`, read by every layer's attention.

Axes: T tokens of the row, K keys of all segments end to end, C copies of a token among them.
"""

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """One run of queries. Its keys are the `prefix_length` tokens from `prefix_start` on, then its own tokens."""

    start: int
    length: int
    prefix_start: int
    prefix_length: int


@dataclass(frozen=True)
class PackedLayout:
    """Which tokens of a packed row see which. Segments lie side by side and cover the row.

    The prefix of a group rides with its first response: (P + R1) queries over as many keys. Each further response
    has R_j queries over P + R_j keys, aligned at the bottom right.

    `kv_index`: (sum of keys,) the row position of each segment's keys, one segment after the other;
    `cu_seq_q`, `cu_seq_k`: (segments + 1,) int32 offsets. These are what a varlen kernel reads.
    """

    segments: tuple[Segment, ...]
    kv_index: Tensor
    cu_seq_q: Tensor
    cu_seq_k: Tensor
    max_q: int
    max_k: int
    # Masks are the same in every layer: one forward builds each shape, and each window of FlexAttention's, once.
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False, compare=False)
    block_masks: dict[int | None, Any] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def q_lengths(self) -> list[int]:
        """Queries of each segment, side by side in the query tensor."""
        return [segment.length for segment in self.segments]

    @property
    def num_tokens(self) -> int:
        return sum(segment.length for segment in self.segments)

    @functools.cached_property
    def score_index(self) -> Tensor:
        """(segments,) the row position of each segment's last token: every segment ends at a reward position."""
        return self.cu_seq_q[1:].long() - 1

    @functools.cached_property
    def copies(self) -> Tensor:
        """(C, T) where each row token stands in `kv_index`, -1 where it has no further copy.

        Row 0 is the token among its own segment's keys; prefix tokens have one more copy per further response.
        """
        counts: dict[int, int] = {}  # of the copies so far, by the prefix's start
        for segment in self.segments:
            if segment.prefix_length:
                counts[segment.prefix_start] = counts.get(segment.prefix_start, 0) + 1
        copies = torch.full((1 + max(counts.values(), default=0), self.num_tokens), -1)
        counts, at = {}, 0
        for start, length, prefix_start, prefix_length in self.segments:
            if prefix_length:
                counts[prefix_start] = number = counts.get(prefix_start, 0) + 1
                copies[number, prefix_start : prefix_start + prefix_length] = torch.arange(at, at + prefix_length)
            at += prefix_length
            copies[0, start : start + length] = torch.arange(at, at + length)
            at += length
        return copies.to(self.kv_index.device)

    @functools.cached_property
    def token_table(self) -> Tensor:
        """(4, T) int32: of each row token its segment's start, its prefix's start and stop, and its position.

        The position is that among its segment's keys, which is the one in its conversation.
        """
        columns = [
            torch.stack(
                [
                    torch.full((length,), start),
                    torch.full((length,), prefix_start),
                    torch.full((length,), prefix_start + prefix_length),
                    torch.arange(prefix_length, prefix_length + length),
                ]
            )
            for start, length, prefix_start, prefix_length in self.segments
        ]
        return torch.cat(columns, dim=1).to(self.kv_index.device, torch.int32)

    @functools.cached_property
    def at_scores(self) -> "ScoreLayout":
        return ScoreLayout.of(self)

    @staticmethod
    def from_segments(segments: tuple[Segment, ...], device: torch.device | str = "cpu") -> "PackedLayout":
        q_lengths = [segment.length for segment in segments]
        k_lengths = [segment.prefix_length + segment.length for segment in segments]
        kv_index = [
            torch.arange(start, start + length)
            for segment in segments
            for start, length in (
                (segment.prefix_start, segment.prefix_length),
                (segment.start, segment.length),
            )
        ]
        return PackedLayout(
            segments=segments,
            kv_index=torch.cat(kv_index).to(device),
            cu_seq_q=_offsets(q_lengths, device),
            cu_seq_k=_offsets(k_lengths, device),
            max_q=max(q_lengths),
            max_k=max(k_lengths),
        )

    @functools.cached_property
    def shapes(self) -> dict[tuple[int, int], list[int]]:
        """(length, prefix length) -> the segments of that shape."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, segment in enumerate(self.segments):
            shapes.setdefault((segment.length, segment.prefix_length), []).append(index)
        return shapes

    def mask(self, num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
        """(Q, K) boolean, true where a query sees a key: causal, aligned at the bottom right, within the window."""
        key = (num_queries, num_keys, window)
        if key not in self.masks:
            allowed = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
            allowed = allowed.tril(num_keys - num_queries)
            if window is not None:
                allowed = allowed.triu(num_keys - num_queries - window + 1)
            self.masks[key] = allowed
        return self.masks[key]


@dataclass(frozen=True)
class ScoreLayout(PackedLayout):
    """The same keys for one query per segment: its last token, at the reward position."""

    row: PackedLayout = field(kw_only=True, repr=False)

    @staticmethod
    def of(layout: PackedLayout) -> "ScoreLayout":
        num_segments = len(layout.segments)
        return ScoreLayout(
            segments=layout.segments,
            kv_index=layout.kv_index,
            cu_seq_q=torch.arange(num_segments + 1, dtype=torch.int32, device=layout.cu_seq_q.device),
            cu_seq_k=layout.cu_seq_k,
            max_q=1,
            max_k=layout.max_k,
            row=layout,
        )

    @functools.cached_property
    def copies(self) -> Tensor:
        return self.row.copies

    @functools.cached_property
    def q_lengths(self) -> list[int]:
        return [1] * len(self.segments)


class KeysWanted(NamedTuple):
    """In place of a layout: keep the layer's keys and values of every token, and go no further."""

    layout: PackedLayout


class KeysFound(Exception):
    """No error: how a layer is left halfway. Carries `key` and `value` (1, H_kv, T, D)."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value


class ScoresWanted(NamedTuple):
    """In place of a layout: queries are those of the reward positions; keys and values are these, of every token."""

    layout: ScoreLayout
    key: Tensor
    value: Tensor


def _offsets(lengths: list[int], device: torch.device | str) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
