"""Attention over packed rows whose responses share their prompt, exactly.

A row is `P1 C1 R1 P2 C2 R2 ...`; queries are computed once for every token, and each response sees its group's
prefix and itself. One function, registered with transformers under ATTENTION_NAME, is called by every decoder's
attention layer with the layout that `batch` built, and hands over to a backend.

Axes: H heads, T tokens of the row, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rmcli.errors import ConfigError, RmcliError
from rmcli.model.attention import by_segment, fa3, flex, ulysses, varlen
from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import (
    KeysFound,
    KeysWanted,
    PackedLayout,
    ScoresWanted,
)
from rmcli.model.attention.needs import NEEDS_CUDA, NEEDS_REDUCED
from rmcli.model.attention.row_share import RowShare

# transformers builds no mask for an attention name its mask table does not know: all masking happens here.
ATTENTION_NAME = "rmcli_shared_prefix"

# The values of model.attention, but auto.
BACKENDS: dict[str, Callable[[Call], Tensor]] = {
    "varlen": varlen.attend,
    "fa3": varlen.attend_with_fa3,
    "flash": varlen.attend_with_flash,
    "sdpa": by_segment.attend,
    "flex": flex.attend,
}


def check_backend(backend: str, device: torch.device, is_reduced: bool) -> None:
    """Raise ConfigError when this value of model.attention cannot run: before a weight is loaded."""
    if backend in NEEDS_CUDA and device.type != "cuda":
        raise ConfigError(
            f"model.attention = {backend!r} runs on CUDA only, and the device is {device.type}",
            "set model.attention=auto, or sdpa",
        )
    if backend in NEEDS_REDUCED and not is_reduced:
        raise ConfigError(
            f"model.attention = {backend!r} computes in bfloat16 only, and model.dtype is float32",
            "set model.dtype=bfloat16, or model.attention=sdpa",
        )
    if backend == "fa3":
        fa3.check(device)
    if backend == "flash":
        varlen.flash_attn()


def _choose(call: Call) -> str:
    """What auto means for this layer."""
    if not call.query.is_cuda or call.query.dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    return "varlen" if call.softcap is None and call.sinks is None else "flex"


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
    packed_layout: PackedLayout | RowShare | KeysWanted | ScoresWanted | None = None,
    packed_backend: str = "auto",
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one packed row.

    `query`: (1, H, T, D); `key`, `value`: (1, H_kv, T, D). Returns ((1, T, H, D), None). Under a RowShare, T are the
    tokens of this process.
    Raises RmcliError when a caller gives no layout or a mask of its own; ConfigError when the layer needs what the
    backend lacks; KeysFound where keys are all that is wanted.
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
    query, key, value = (_in_working_precision(tensor) for tensor in (query, key, value))
    share, layout = None, packed_layout
    if isinstance(layout, RowShare):
        share, layout = layout, layout.whole
    call = Call(query, key, value, layout, scaling, dropout, sliding_window, softcap, s_aux)
    backend = _choose(call) if packed_backend == "auto" else packed_backend
    if backend == "flex" and torch.compiler.is_compiling():
        raise ConfigError("soft-capped or sink attention is not for compiled layers", "set train.kernels=torch")
    output = BACKENDS[backend](call) if share is None else ulysses.attend(BACKENDS[backend], call, share)
    return output, None


def _in_working_precision(tensor: Tensor) -> Tensor:
    """Under autocast, its dtype: rotary embeddings and norms give float32 back, which no kernel but SDPA mends."""
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind))


def register() -> None:
    """Make the function known to transformers. Calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)
