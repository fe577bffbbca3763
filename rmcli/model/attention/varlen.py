"""Attention in one kernel call: queries as they lie, keys and values gathered per segment.

Two functions take this form: torch's `varlen_attn`, on torch's own kernels or FlashAttention 3's (`fa3`), and
`flash_attn_varlen_func` of the package flash-attn 2. All are causal with the last query of a segment at its last key.
Axes: T row tokens (or queries), K gathered keys, H heads, D head size.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import pad

from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.model.attention import fa3
from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import PackedLayout, ScoreLayout

LARGEST_HEAD = 256  # of all these kernels
FLASH_HINT = f"{install_command('flash', '--no-build-isolation')} builds it (needs nvcc), or set model.attention=auto"


def attend(call: Call) -> Tensor:
    """By torch's kernel."""
    call.refuse("varlen", dropout=True, softcap=True, sinks=True)
    return _in_one_call(_torch_kernel, call)


def attend_with_fa3(call: Call) -> Tensor:
    """By torch's function on FlashAttention 3's kernels, which `fa3.switch` has put in."""
    call.refuse("fa3", dropout=True, softcap=True, sinks=True)
    if not torch.compiler.is_compiling() and not fa3.is_on():
        raise ConfigError(
            "attention fa3: another network of this process has put torch's own kernels back",
            "run all networks of a process with model.attention=fa3, or none",
        )
    return _in_one_call(_varlen_attn, call)  # grouped heads as they are, compiled or not


def attend_with_flash(call: Call) -> Tensor:
    """By the kernel of the package flash-attn, version 2."""
    call.refuse("flash", sinks=True)
    return _in_one_call(_flash_kernel, call)


def _in_one_call(kernel: Callable[[Tensor, Tensor, Tensor, Call], Tensor], call: Call) -> Tensor:
    """The kernels want one head size, a multiple of 8: heads are filled up with zeros, which change no product.

    Values have another size than keys in multi-head latent attention.
    """
    value_size = call.value.shape[-1]
    size = max(call.key.shape[-1], value_size)
    size += -size % 8
    if size > LARGEST_HEAD:
        raise ConfigError(
            f"heads of {size} numbers are too large for this kernel, which takes {LARGEST_HEAD}",
            "set model.attention=flex or sdpa",
        )
    query_THD, key_THD, value_THD = (_by_token(tensor, size) for tensor in (call.query, call.key, call.value))
    output_THD = kernel(
        query_THD,
        gather_keys(key_THD, call.layout),
        gather_keys(value_THD, call.layout),
        call._replace(scaling=call.scale),  # of the head as it was
    )
    return output_THD[..., :value_size].unsqueeze(0)


def _by_token(tensor: Tensor, size: int) -> Tensor:
    """(1, H, T, D) -> (T, H, size)."""
    tensor_THD = tensor.squeeze(0).transpose(0, 1)
    missing = size - tensor_THD.shape[-1]
    return pad(tensor_THD, (0, missing)) if missing else tensor_THD


def _torch_kernel(query_THD: Tensor, key_KHD: Tensor, value_KHD: Tensor, call: Call) -> Tensor:
    if torch.compiler.is_compiling():
        # The kernel's own sum of grouped gradients is slow; here it becomes a part of the gather's backward.
        groups = query_THD.shape[1] // key_KHD.shape[1]
        key_KHD, value_KHD = (tensor.repeat_interleave(groups, dim=1) for tensor in (key_KHD, value_KHD))
    return _varlen_attn(query_THD, key_KHD, value_KHD, call)


def _varlen_attn(query_THD: Tensor, key_KHD: Tensor, value_KHD: Tensor, call: Call) -> Tensor:
    """torch's function, whose signature grew: 2.11 takes grouped queries as they are, 2.12 wants to be told.

    Causal is the window (-1, 0): unbounded to the left, nothing to the right; a sliding window of W tokens that
    counts the query itself is (W - 1, 0). Its backward is deterministic when torch is told to be
    (`_flash_attention_backward` in torch's attention_backward.cu, and in its `_fa3`).
    """
    arguments: dict[str, Any] = {"window_size": _kernel_window(call.window), "scale": call.scale}
    if query_THD.shape[1] != key_KHD.shape[1] and _wants_enable_gqa():
        arguments["enable_gqa"] = True
    layout = call.layout
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


def _wants_enable_gqa() -> bool:
    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


# As torch.compiler.assume_constant_result marks it, whose import of dynamo every start would pay for.
_wants_enable_gqa._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _flash_kernel(query_THD: Tensor, key_KHD: Tensor, value_KHD: Tensor, call: Call) -> Tensor:
    """flash-attn 2.6 or later: grouped queries as they are, soft-capping, a deterministic backward when asked for."""
    layout = call.layout
    return flash_attn().flash_attn_varlen_func(
        query_THD,
        key_KHD,
        value_KHD,
        cu_seqlens_q=layout.cu_seq_q,
        cu_seqlens_k=layout.cu_seq_k,
        max_seqlen_q=layout.max_q,
        max_seqlen_k=layout.max_k,
        dropout_p=call.dropout,
        softmax_scale=call.scale,
        causal=True,
        window_size=_kernel_window(call.window),
        softcap=call.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )


def _kernel_window(window: int | None) -> tuple[int, int]:
    return (-1, 0) if window is None else (window - 1, 0)


def flash_attn() -> Any:
    """The package. Raises ConfigError when it is missing, cannot be loaded or is too old."""
    try:
        package = import_module("flash_attn")
    except ImportError as error:
        raise ConfigError(f"model.attention = 'flash': flash-attn cannot be imported: {error}", FLASH_HINT) from error
    version = str(package.__version__)
    major, minor = (int(part) for part in version.split(".")[:2])
    if major != 2 or minor < 6:
        raise ConfigError(f"model.attention = 'flash' takes flash-attn 2.6 or a later 2.x, not {version}", FLASH_HINT)
    return package


def gather_keys(tensor_THD: Tensor, layout: PackedLayout) -> Tensor:
    """(K, H, D) the rows that `layout.kv_index` names; a backward without atomics.

    `index_select` alone adds a prefix token's gradients in an order that changes from run to run on CUDA.
    """
    if isinstance(layout, ScoreLayout):
        tensor_THD = tensor_THD[: layout.num_gathered]
    result = _GatherKeys.apply(tensor_THD, layout.kv_index, layout.copies)
    assert isinstance(result, Tensor)
    return result


class _GatherKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor_THD: Tensor, kv_index_K: Tensor, copies_CT: Tensor) -> Tensor:
        ctx.save_for_backward(copies_CT)
        return tensor_THD.index_select(0, kv_index_K)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Each row token reads its copies one after the other, summed in float32 at least: nothing is scattered."""
        (copies_CT,) = ctx.saved_tensors
        (gradient_KHD,) = gradients
        own, *further = copies_CT.unbind(0)
        total_THD = gradient_KHD.index_select(0, own)
        if further:
            total_THD = total_THD.to(torch.promote_types(torch.float32, gradient_KHD.dtype))
        for copy in further:
            part_THD = gradient_KHD.index_select(0, copy.clamp(min=0))
            total_THD = total_THD + part_THD.masked_fill((copy < 0)[:, None, None], 0)
        return total_THD.to(gradient_KHD.dtype), None, None
