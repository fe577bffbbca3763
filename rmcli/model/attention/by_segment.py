"""Attention one shape of segments at a time, in plain torch: the default on CPU, the reference on any device."""

import torch
from torch import Tensor
from torch.nn.functional import dropout as apply_dropout
from torch.nn.functional import scaled_dot_product_attention

from rmcli.model.attention.call import Call


def attend(call: Call) -> Tensor:
    """A loop over the shapes of segments; those of one shape run as one batch, for many short ones cost calls.

    Splitting, not slicing: the backward of a slice fills a whole row with zeros.
    """
    layout, window = call.layout, call.window
    starts = {segment.start: index for index, segment in enumerate(layout.segments)}
    queries = call.query.split(layout.q_lengths, dim=2)
    keys, values = (tensor.split(layout.row_lengths, dim=2) for tensor in (call.key, call.value))

    def with_prefix(parts: tuple[Tensor, ...], index: int) -> Tensor:
        segment = layout.segments[index]
        if not segment.prefix_length:
            return parts[index]
        first = starts[segment.prefix_start]  # the segment the prefix rides with
        return torch.cat([parts[first][:, :, : segment.prefix_length], parts[index]], dim=2)

    outputs: list[Tensor] = [call.query] * len(layout.segments)
    for (length, prefix_length), members in layout.shapes.items():
        shape_query = torch.cat([queries[index] for index in members])
        shape_key = torch.cat([with_prefix(keys, index) for index in members])
        shape_value = torch.cat([with_prefix(values, index) for index in members])
        num_queries, num_keys = shape_query.shape[2], prefix_length + length
        unbounded = window is None or num_keys <= window
        causal = num_queries == num_keys and unbounded
        if call.softcap is None and call.sinks is None:
            output = scaled_dot_product_attention(
                shape_query,
                shape_key,
                shape_value,
                attn_mask=(
                    None
                    if causal or (num_queries == 1 and unbounded)
                    else layout.mask(num_queries, num_keys, window, shape_query.device)
                ),
                is_causal=causal,
                dropout_p=call.dropout,
                scale=call.scaling,
                enable_gqa=call.is_grouped,
            )
        else:
            mask = layout.mask(num_queries, num_keys, window, shape_query.device)
            output = _softmax_attention(call._replace(query=shape_query, key=shape_key, value=shape_value), mask)
        for index, part in zip(members, output.split(1), strict=True):
            outputs[index] = part
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()  # some decoders view it, as the stock ones allow


def _softmax_attention(call: Call, mask: Tensor) -> Tensor:
    """Attention written out, for what SDPA lacks: soft-capped logits (Gemma-2) and sinks (gpt_oss)."""
    query, sinks = call.query, call.sinks
    repeats = query.shape[1] // call.key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (call.key, call.value))
    logits = query @ key.transpose(2, 3) * call.scale
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    if sinks is not None:
        logits = torch.cat([logits, sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)], dim=-1)
    minimum_dtype = torch.promote_types(torch.float32, logits.dtype)
    weights = torch.softmax(logits, dim=-1, dtype=minimum_dtype).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return apply_dropout(weights, call.dropout) @ value
