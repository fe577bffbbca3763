"""Matrix products in 8-bit floats while a model trains, by torchao (FP8: arXiv 2209.05433).

Of whole-row layers' linear layers, inputs, weights and gradients are rounded to 8 bits with scales of their own for
each product; weights, optimizer, norms, attention and the head stay as they are. Evaluation multiplies as the
exported model will: in the network's own precision.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rmcli import output
from rmcli.config.sections import Config
from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.model.device import is_reduced

OLDEST = (8, 9)  # compute capability: Ada, then Hopper and Blackwell
MULTIPLE = 16  # of the numbers that a product in 8 bits takes in and gives
ROUTERS = ("gate", "router")  # small, and what they round away sends a token to another expert


def check_fp8(config: Config, device: torch.device, processes: int) -> None:
    """Raise ConfigError when `train.fp8` cannot run here: before a weight is loaded."""
    recipe = config.train.fp8
    if recipe == "none":
        return
    said = f"train.fp8 = {recipe!r}"
    off = "leave train.fp8 out"
    if device.type != "cuda":
        raise ConfigError(f"{said} is for CUDA, and the device is {device.type}", off)
    if not is_reduced(config.model.dtype, device):
        raise ConfigError(f"{said} with model.dtype = {config.model.dtype!r}", "set model.dtype=bfloat16")
    if processes > 1:
        raise ConfigError(f"{said} on {processes} processes: not proven there", off)
    if config.lora.r is not None:
        raise ConfigError(f"{said} with lora.r: what is frozen learns nothing, and adapters are small", off)
    _torchao()
    if (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        raise ConfigError(
            f"{said} needs compute capability 8.9, and {device} has {'.'.join(map(str, capability))}", off
        )
    if config.train.kernels != "compile":
        output.warn(f"{said} without train.kernels = 'compile': rounding to 8 bits costs more than it saves")


def use_fp8(layers: Sequence[nn.Module], recipe: str, emulate: bool = False) -> None:
    """Let the linear layers of these decoder layers multiply in 8 bits in training; parameters stay the same objects.

    `recipe`: "tensorwise" or "rowwise", what shares a scale. `emulate` rounds as 8 bits do and multiplies in float32,
    on any device. How many layers do, and how many do not, is said.
    """
    torchao = _torchao()
    config = replace(torchao.Float8LinearConfig.from_recipe_name(recipe), emulate=emulate, pad_inner_dim=True)
    all_linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        torchao.convert_to_float8_training(layer, module_filter_fn=_fits, config=config)
    in_8_bits = [module for layer in layers for module in layer.modules() if type(module).__name__ == "Float8Linear"]
    for module in in_8_bits:
        module.__class__ = _only_in_training(type(module))
    output.say(
        f"FP8 ({recipe}): {len(in_8_bits)} of {len(all_linear)} linear layers multiply in 8 bits while they train; "
        "evaluation does not"
    )


def package() -> str:
    """What the products come from, for a run's record."""
    try:
        return f"torchao {version('torchao')}"
    except PackageNotFoundError:  # a copy without what pip writes beside it
        return "torchao"


def _fits(module: nn.Module, name: str) -> bool:
    sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
    return not any(size % MULTIPLE for size in sizes) and name.rpartition(".")[2] not in ROUTERS


@cache
def _only_in_training(kind: type[nn.Linear]) -> type[nn.Linear]:
    class Fp8Linear(kind):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if self.training else linear(input, self.weight, self.bias)

    return Fp8Linear


def _torchao() -> Any:
    try:
        from torchao import float8  # pyright: ignore[reportMissingImports] (the extra fp8 brings it)
    except ImportError as error:
        raise ConfigError(f"train.fp8: torchao cannot be imported: {error}", install_command("fp8")) from error
    return float8
