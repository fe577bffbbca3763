"""Which tokens of a packed row see which: built once per row by `batch`, read by every layer's attention.

Axes: T tokens of the row, K keys of all segments end to end, C copies of a token among them.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
class BatchShape:
    """Sizes that rows are filled up to, so that all of them run through one compiled graph.

    `num_keys` of all segments, `num_segments` with those that fill up, `num_copies` further ones of a prefix;
    no segment has more than `longest` keys.
    """

    num_tokens: int
    longest: int
    num_keys: int = 0
    num_segments: int = 0
    num_copies: int = 0

    def grown_for(self, segments: Sequence[Segment]) -> "BatchShape":
        """This shape where it holds the segments, else one that does: a step larger, so that few graphs are built."""
        num_tokens = sum(segment.length for segment in segments)
        num_keys = sum(segment.prefix_length + segment.length for segment in segments)
        longest = max(segment.prefix_length + segment.length for segment in segments)
        num_copies = max(Counter(s.prefix_start for s in segments if s.prefix_length).values(), default=0)
        longest = self.longest if longest <= self.longest else _power_of_two(longest)
        whole = self.num_tokens if num_tokens <= self.num_tokens else num_tokens + -num_tokens % 1024
        num_segments, num_keys = BatchShape(whole, longest).filled_up(num_tokens, len(segments), num_keys)
        return BatchShape(
            num_tokens=whole,
            longest=longest,
            num_keys=self.num_keys if num_keys <= self.num_keys else num_keys + -num_keys % max(whole // 4, 1),
            num_segments=self.num_segments if num_segments <= self.num_segments else _power_of_two(num_segments),
            num_copies=self.num_copies if num_copies <= self.num_copies else _power_of_two(num_copies),
        )

    def filled_up(self, num_tokens: Any, num_segments: Any, num_keys: Any) -> tuple[Any, Any]:
        """Segments and keys of a row of so many tokens, what fills it up included; numbers, or arrays of them."""
        missing = self.num_tokens - num_tokens
        return num_segments + -(-missing // self.longest), num_keys + missing

    def filling(self, num_tokens: int) -> tuple[Segment, ...]:
        """Segments of their own over the tokens that are missing: nothing sees them."""
        starts = range(num_tokens, self.num_tokens, self.longest)
        return tuple(Segment(start, min(self.longest, self.num_tokens - start), start, 0) for start in starts)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class PackedLayout:
    """Which tokens of a packed row see which. Segments lie side by side and cover the row.

    The prefix of a group rides with its first response: (P + R1) queries over as many keys. Each further response
    has R_j queries over P + R_j keys, aligned at the bottom right.

    `kv_index`: (sum of keys,) the row position of each segment's keys, one segment after the other;
    `cu_seq_q`, `cu_seq_k`: (segments + 1,) int32 offsets. These are what a varlen kernel reads.
    With a `shape` the last segments fill the row up, and offsets and indices are filled up too; the first
    `num_scores` segments are the responses.
    """

    segments: tuple[Segment, ...]
    kv_index: Tensor
    cu_seq_q: Tensor
    cu_seq_k: Tensor
    max_q: int
    max_k: int
    num_scores: int
    shape: BatchShape | None = None
    # Masks are the same in every layer: one forward builds each shape, and each window of FlexAttention's, once.
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False, compare=False)
    block_masks: dict[int | None, Any] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def q_lengths(self) -> list[int]:
        """Queries of each segment, side by side in the query tensor."""
        return [segment.length for segment in self.segments]

    @functools.cached_property
    def row_lengths(self) -> list[int]:
        """Tokens of each segment of the whole row, side by side in the key tensor."""
        return [segment.length for segment in self.segments]

    @property
    def num_tokens(self) -> int:
        """Of the row, what fills it up included."""
        return sum(self.row_lengths)

    @functools.cached_property
    def score_index(self) -> Tensor:
        """(num_scores,) the row position of each response's last token, the reward position."""
        return self.cu_seq_q[1 : self.num_scores + 1].long() - 1

    def take_scores(self, tensor: Tensor, axis: int) -> Tensor:
        """The reward positions of a tensor over the row's tokens."""
        return tensor.index_select(axis, self.score_index)

    @functools.cached_property
    def copies(self) -> Tensor:
        """(C, T) where each row token stands in `kv_index`, -1 where it has no further copy.

        Row 0 is the token among its own segment's keys; prefix tokens have one more copy per further response.
        """
        counts: dict[int, int] = {}  # of the copies so far, by the prefix's start
        for segment in self.segments:
            if segment.prefix_length:
                counts[segment.prefix_start] = counts.get(segment.prefix_start, 0) + 1
        further = max(counts.values(), default=0) if self.shape is None else self.shape.num_copies
        copies = torch.full((1 + further, self.num_tokens), -1)
        counts, at = {}, 0
        for start, length, prefix_start, prefix_length in self.segments:
            if prefix_length:
                counts[prefix_start] = number = counts.get(prefix_start, 0) + 1
                copies[number, prefix_start : prefix_start + prefix_length] = torch.arange(at, at + prefix_length)
            at += prefix_length
            copies[0, start : start + length] = torch.arange(at, at + length)
            at += length
        return to_device(copies, self.kv_index.device)

    def filled_up(self, num_tokens: int) -> "PackedLayout":
        """With one more segment over the tokens that are missing, which nothing sees. No device is waited for."""
        start, missing = self.num_tokens, num_tokens - self.num_tokens
        if not missing:
            return self
        assert self.shape is None  # which is filled up itself
        further = torch.arange(start, num_tokens, device=self.kv_index.device)
        return replace(
            self,
            segments=(*self.segments, Segment(start, missing, start, 0)),
            kv_index=torch.cat([self.kv_index, further]),
            cu_seq_q=torch.cat([self.cu_seq_q, self.cu_seq_q[-1:] + missing]),
            cu_seq_k=torch.cat([self.cu_seq_k, self.cu_seq_k[-1:] + missing]),
            max_q=max(self.max_q, missing),
            max_k=max(self.max_k, missing),
            masks={},
            block_masks={},
        )

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
    def from_segments(
        segments: tuple[Segment, ...], device: torch.device | str = "cpu", shape: BatchShape | None = None
    ) -> "PackedLayout":
        """`shape` must hold the segments (see grown_for)."""
        num_scores = len(segments)
        if shape is not None:
            segments += shape.filling(sum(segment.length for segment in segments))
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
        if shape is not None:
            kv_index.append(torch.zeros(shape.num_keys - sum(k_lengths), dtype=torch.int64))
            empty = [0] * (shape.num_segments - len(segments))
            q_lengths, k_lengths = q_lengths + empty, k_lengths + empty
        layout = PackedLayout(
            segments=segments,
            kv_index=to_device(torch.cat(kv_index), device),
            cu_seq_q=_offsets(q_lengths, device),
            cu_seq_k=_offsets(k_lengths, device),
            max_q=max(q_lengths) if shape is None else shape.longest,
            max_k=max(k_lengths) if shape is None else shape.longest,
            num_scores=num_scores,
            shape=shape,
        )
        if shape is not None:
            _ = layout.copies  # a compiled layer only looks it up
        return layout

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
        number = layout.num_scores
        segments = layout.segments[:number]
        return ScoreLayout(
            segments=segments,
            kv_index=layout.kv_index[: sum(segment.prefix_length + segment.length for segment in segments)],
            cu_seq_q=torch.arange(number + 1, dtype=torch.int32, device=layout.cu_seq_q.device),
            cu_seq_k=layout.cu_seq_k[: number + 1],
            max_q=1,
            max_k=layout.max_k,
            num_scores=number,
            row=layout,
        )

    @functools.cached_property
    def row_lengths(self) -> list[int]:
        return self.row.row_lengths

    @property
    def num_gathered(self) -> int:
        """What fills the row up is in no segment here: its keys must not be gathered, or it would get gradients."""
        return sum(segment.length for segment in self.segments)

    @functools.cached_property
    def copies(self) -> Tensor:
        return self.row.copies[:, : self.num_gathered]

    @functools.cached_property
    def q_lengths(self) -> list[int]:
        return [1] * len(self.segments)


class KeysWanted:
    """In place of a layout: keep the layer's keys and values of every token, and go no further."""


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
    return to_device(torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32), device)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Without waiting for what the device still works on: from pinned memory, in its queue."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
