"""Attention over packed rows whose responses share their prompt, exactly.

A row is `P1 C1 R1 P2 C2 R2 ...`; queries are computed once for every token, and each response sees its group's
prefix and itself. One function, registered with transformers under ATTENTION_NAME, is called by every decoder's
attention layer with the layout that `batch` built.

Axes: H heads, T tokens of the row, D head size, Q queries and K keys of one segment.
"""

import functools
import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import pad, scaled_dot_product_attention

from rmcli.errors import RmcliError

# transformers builds no mask for an attention name its mask table does not know: all masking happens here.
ATTENTION_NAME = "rmcli_shared_prefix"


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
    # Masks are the same in every layer: one forward builds each shape once.
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict, repr=False, compare=False)

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
        )

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


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packed_layout: PackedLayout | KeysWanted | ScoresWanted | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one packed row.

    `query`: (1, H, T, D); `key`, `value`: (1, H_kv, T, D). Returns ((1, T, H, D), None).
    Raises RmcliError when a caller gives no layout or a mask of its own; KeysFound where keys are all that is wanted.
    """
    if packed_layout is None or attention_mask is not None:
        raise RmcliError(
            f"{ATTENTION_NAME} attention of {type(module).__name__} was called without a layout or with a mask",
            "set model.use_varlen_attn=false for this architecture",
        )
    if isinstance(packed_layout, KeysWanted):
        raise KeysFound(key, value)
    if isinstance(packed_layout, ScoresWanted):
        packed_layout, key, value = packed_layout
    if softcap is not None or s_aux is not None:
        if query.is_cuda:
            raise RmcliError(
                "soft-capped or sink attention is not built for CUDA yet",
                "use train.device=cpu, or model.use_varlen_attn=false",
            )
        output = _by_segment(query, key, value, packed_layout, scaling, dropout, sliding_window, softcap, s_aux)
    elif query.is_cuda:
        output = _varlen(query, key, value, packed_layout, scaling, dropout, sliding_window)
    else:
        output = _by_segment(query, key, value, packed_layout, scaling, dropout, sliding_window, None, None)
    return output, None


def _by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """A loop over the shapes of segments; those of one shape run as one batch, for many short ones cost calls.

    Splitting, not slicing: the backward of a slice fills a whole row with zeros.
    """
    lengths = [segment.length for segment in layout.segments]
    starts = {segment.start: index for index, segment in enumerate(layout.segments)}
    queries = query.split(layout.q_lengths, dim=2)
    keys, values = (tensor.split(lengths, dim=2) for tensor in (key, value))

    def with_prefix(parts: tuple[Tensor, ...], index: int) -> Tensor:
        segment = layout.segments[index]
        if not segment.prefix_length:
            return parts[index]
        first = starts[segment.prefix_start]  # the segment the prefix rides with
        return torch.cat([parts[first][:, :, : segment.prefix_length], parts[index]], dim=2)

    outputs: list[Tensor] = [query] * len(lengths)
    for (length, prefix_length), members in layout.shapes.items():
        shape_query = torch.cat([queries[index] for index in members])
        shape_key = torch.cat([with_prefix(keys, index) for index in members])
        shape_value = torch.cat([with_prefix(values, index) for index in members])
        num_queries, num_keys = shape_query.shape[2], prefix_length + length
        unbounded = window is None or num_keys <= window
        causal = num_queries == num_keys and unbounded
        if softcap is None and sinks is None:
            output = scaled_dot_product_attention(
                shape_query,
                shape_key,
                shape_value,
                attn_mask=(
                    None
                    if causal or (num_queries == 1 and unbounded)
                    else layout.mask(num_queries, num_keys, window, query.device)
                ),
                is_causal=causal,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        else:
            mask = layout.mask(num_queries, num_keys, window, query.device)
            output = _softmax_attention(shape_query, shape_key, shape_value, mask, scaling, dropout, softcap, sinks)
        for index, part in zip(members, output.split(1), strict=True):
            outputs[index] = part
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()  # some decoders view it, as the stock ones allow


def _softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what the fused kernels lack: soft-capped logits (Gemma-2) and sinks (gpt_oss).

    `sinks`: (H,) one logit per head that takes part in the softmax and has no value.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    if sinks is not None:
        logits = torch.cat([logits, sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)], dim=-1)
    minimum_dtype = torch.promote_types(torch.float32, logits.dtype)
    weights = torch.softmax(logits, dim=-1, dtype=minimum_dtype).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return apply_dropout(weights, dropout) @ value


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """One call of torch's varlen kernel: queries as they lie, keys and values gathered per segment.

    Values with another head size than the keys' (multi-head latent attention) are filled up with zeros for the call.
    """
    if dropout:
        raise RmcliError(
            f"attention dropout {dropout} is not supported by the varlen kernel", "set it to 0 in config.json"
        )
    query_THD, key_THD, value_THD = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    value_size = value_THD.shape[-1]
    output_THD = call_varlen_kernel(
        query_THD,
        key_THD.index_select(0, layout.kv_index),
        pad(value_THD, (0, key_THD.shape[-1] - value_size)).index_select(0, layout.kv_index),
        layout,
        scaling,
        window,
    )
    return output_THD[..., :value_size].unsqueeze(0)


def call_varlen_kernel(
    query_THD: Tensor,
    key_KHD: Tensor,
    value_KHD: Tensor,
    layout: PackedLayout,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """torch's `varlen_attn`, whose signature grew: 2.11 takes grouped queries as they are, 2.12 wants to be told.

    Causal is the window (-1, 0): unbounded to the left, nothing to the right; a sliding window of W tokens that
    counts the query itself is (W - 1, 0).
    """
    from torch.nn.attention import varlen

    arguments: dict[str, Any] = {"window_size": (-1, 0) if window is None else (window - 1, 0), "scale": scaling}
    grouped = query_THD.shape[1] != key_KHD.shape[1]
    if grouped and "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        arguments["enable_gqa"] = True
    output = varlen.varlen_attn(
        query_THD,
        key_KHD,
        value_KHD,
        layout.cu_seq_q,
        layout.cu_seq_k,
        layout.max_q,
        layout.max_k,
        **arguments,
    )
    assert isinstance(output, Tensor)
    return output


def register() -> None:
    """Make the function known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
