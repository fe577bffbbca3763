"""Linear layers in 4 bits: NF4 with its scales in 8 bits (QLoRA, arXiv 2305.14314), by bitsandbytes.

They are frozen. What trains beside them are adapters; what ships is always whole numbers, taken out of the 4 bits.
"""

import logging
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rmcli.errors import ConfigError
from rmcli.installed import install_command

BITS_PER_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)  # a scale for 64 numbers, in 8 bits, and one for 256 of those


def quantize(backbone: nn.Module) -> None:
    """Every linear layer of the backbone becomes one of 4 bits, once it is moved to its device; float32 arithmetic.

    Raises ConfigError without bitsandbytes.
    """
    linear_4bit = _bitsandbytes().nn.Linear4bit
    for name, module in packable(backbone).items():
        backbone.set_submodule(name, _in_4_bits(module, linear_4bit))


def packable(backbone: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that 4 bits are made of. Raises ConfigError where there are none, or of another kind, too."""
    found = {name: module for name, module in backbone.named_modules() if type(module) is nn.Linear}
    if not found or any(isinstance(module, Conv1D) for module in backbone.modules()):
        raise ConfigError(
            f"model.quantization = 'nf4': {type(backbone).__name__} has matrices that are no torch.nn.Linear",
            "set model.quantization=none; lora.r alone saves most of the memory",
        )
    return found


def compute_in(network: nn.Module, dtype: torch.dtype) -> None:
    """The precision in which layers of 4 bits multiply."""
    for module in network.modules():
        if is_quantized(module):
            cast(Any, module).compute_dtype = dtype


def _in_4_bits(layer: nn.Linear, kind: Any) -> nn.Module:
    with torch.device("meta"):
        made = kind(layer.in_features, layer.out_features, layer.bias is not None, torch.float32, quant_type="nf4")
    # On CPUs with avx512_bf16 the first evaluation would pack the weights anew, and scores move by a tenth for good.
    made.support_avx512bf16_for_cpu = False
    made.weight = type(made.weight)(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made


def is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and type(layer).__name__ == "Linear4bit"  # peft's is no nn.Linear


def whole(layer: nn.Module) -> nn.Module:
    """The layer in float32: one of 4 bits as an ordinary one with the numbers that those stand for."""
    if not is_quantized(layer):
        return layer.float()
    packed: Any = layer.weight
    numbers = _bitsandbytes().functional.dequantize_4bit(packed.data, packed.quant_state).float()
    with torch.device("meta"):
        made = nn.Linear(numbers.shape[1], numbers.shape[0], layer.bias is not None)
    made.weight = nn.Parameter(numbers, requires_grad=False)
    if layer.bias is not None:
        made.register_parameter("bias", cast(nn.Parameter, layer.bias))
    return made.float()


def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # of a kernel it can do without
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports] (the extra qlora brings it)
    except ImportError as error:
        raise ConfigError(
            f"model.quantization = 'nf4': bitsandbytes cannot be imported: {error}", install_command("qlora")
        ) from error
    return bitsandbytes
