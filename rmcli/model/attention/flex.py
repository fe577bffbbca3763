"""Attention by torch's FlexAttention over the row as it lies: what the varlen kernels lack, soft-capping and sinks.

Nothing is gathered: a mask over (query, key) says who sees whom; blocks of 128 x 128 that hold nothing are skipped.
The kernel is compiled on CUDA. FlexAttention has no backward on CPU, so tests run torch's dense form of it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmcli.model.attention import by_segment
from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import PackedLayout, ScoreLayout

RECOMPILE_LIMIT = 64


def attend(call: Call) -> Tensor:
    """Queries at the reward positions alone are few: they run segment by segment."""
    call.refuse("flex", dropout=True)
    if isinstance(call.layout, ScoreLayout):
        return by_segment.attend(call)
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    on_its_own = call.query.is_cuda and not torch.compiler.is_compiling()
    kernel = _compiled(flex_attention) if on_its_own else flex_attention
    output, auxiliary = kernel(
        call.query,
        call.key,
        call.value,
        score_mod=_soft_capping(call.softcap),
        block_mask=_block_mask(call.layout, call.window),
        scale=call.scale,
        enable_gqa=call.is_grouped,
        return_aux=AuxRequest(lse=True) if call.sinks is not None else AuxRequest(),
    )
    if call.sinks is not None:
        # A sink adds exp(sink) to the softmax's denominator. FlexAttention's lse has a gradient, unlike the others'.
        assert auxiliary.lse is not None
        share = torch.sigmoid(auxiliary.lse - call.sinks[:, None])
        output = (output * share[..., None]).to(output.dtype)
    return output.transpose(1, 2).contiguous()


@functools.cache
def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Never the dense form instead, which a full cache would bring without an error: T x T scores per head."""
    compiled = torch.compile(kernel, fullgraph=True)

    def run(*arguments: Any, **options: Any) -> Any:
        # One graph per kind of layer, training or not, fixed or varying length: more than dynamo's eight.
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            return compiled(*arguments, **options)

    return run


def _soft_capping(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def score_mod(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return score_mod


def _block_mask(layout: PackedLayout, window: int | None) -> Any:
    """Built once per row and window; on the way it holds a few T x T booleans."""
    from torch.nn.attention.flex_attention import create_block_mask

    if window not in layout.block_masks:
        length = layout.num_tokens
        layout.block_masks[window] = create_block_mask(
            _sees(layout, window), None, None, length, length, device=layout.kv_index.device
        )
    return layout.block_masks[window]


def _sees(layout: PackedLayout, window: int | None) -> Callable[..., Tensor]:
    """A query sees its segment up to itself and its group's prefix, as far as the window reaches back."""
    # Tensors of their own: a compiled kernel may want its inputs aligned, which rows of one table are not.
    start, prefix_start, prefix_stop, position = (column.clone() for column in layout.token_table)

    def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= start[query]) & (key <= query)
        of_prefix = (key >= prefix_start[query]) & (key < prefix_stop[query])
        seen = own | of_prefix
        return seen if window is None else seen & (position[query] - position[key] < window)

    return mask_mod
