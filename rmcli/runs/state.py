"""What of network and optimizer a checkpoint holds, by name, and how it gets back into them.

    model.NAME                 a weight as the model computes with it, or a buffer, rotations' frequencies included;
                               beside frozen weights, those that train alone
    optimizer.NAME/STATE       what the optimizer keeps for that weight; master_low: the rest of a split weight

Weights of a checkpoint with split masters are bfloat16; read back they are the float32 masters they stand for.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcli.errors import RmcliError
from rmcli.model.adapter import settings_of, trained
from rmcli.model.compact_adamw import CompactAdamW, join_bits
from rmcli.model.optim import Optimizer
from rmcli.parallel.parts import own_part, zeros_as
from rmcli.runs import tensors

MASTER_LOW = "master_low"


def weights_of(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Weights and buffers: what a model folder is made of."""
    named = {f"model.{name}": tensor.detach() for name, tensor in _named(network)}
    lows = {
        _key(name, MASTER_LOW): optimizer.state[weight][MASTER_LOW]
        for name, weight in network.named_parameters()
        if MASTER_LOW in optimizer.state.get(weight, {})
    }
    return named | lows


def tensors_of(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that the next step needs of both; the tensors themselves, not copies."""
    states = {
        _key(name, state): value.detach()
        for name, weight in network.named_parameters()
        for state, value in optimizer.state.get(weight, {}).items()
    }
    return weights_of(network, optimizer) | states


def read_weights(folder: Path, network: nn.Module, alone: bool = False) -> None:
    """Fill a float32 network from a checkpoint. Raises RmcliError where they do not belong together.

    All processes call it, but for `alone`: the network is then this one's own, and whole.
    """
    stored = tensors.shapes(folder)
    device = next(network.parameters()).device
    wanted: dict[str, Tensor] = {}
    for name, tensor in _named(network):
        is_split = _key(name, MASTER_LOW) in stored
        key = f"model.{name}"
        wanted[key] = torch.empty_like(tensor, dtype=torch.bfloat16) if is_split else tensor.detach()
        if is_split:
            wanted[_key(name, MASTER_LOW)] = torch.empty(tensor.shape, dtype=torch.int16, device=device)
    _refuse_left_over(folder, "model.", {name for name in stored if name.startswith("model.")} - wanted.keys())
    tensors.read(folder, wanted, alone)
    with torch.no_grad():
        for name, tensor in _named(network):
            if (low := wanted.get(_key(name, MASTER_LOW))) is not None:
                tensor.copy_(join_bits(wanted[f"model.{name}"], low))


def read_optimizer(folder: Path, network: nn.Module, optimizer: Optimizer) -> None:
    """Fill a fresh optimizer, which has taken the network's weights over already.

    Raises RmcliError where the checkpoint's is of another kind.
    """
    stored = tensors.shapes(folder)
    wanted: dict[str, Tensor] = {}
    for name, weight in trained(network).items():
        start = _key(name, "")
        kept = {key.removeprefix(start): kind for key, kind in stored.items() if key.startswith(start)}
        state: dict[str, Any] = optimizer.state[weight]
        if not isinstance(optimizer, CompactAdamW):  # torch's own makes its states in the first step
            for part, (dtype, shape) in kept.items():
                state[part] = zeros_as(weight if shape else own_part(weight), shape, dtype)
        wanted |= {_key(name, part): value for part, value in state.items()}
    _refuse_left_over(
        folder, "optimizer.", {name for name in stored if name.startswith("optimizer.")} - wanted.keys()
    )
    tensors.read(folder, wanted)


def _named(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Complex buffers are rotations, computed anew; safetensors has no place for them."""
    if settings_of(network) is not None:
        return list(trained(network).items())
    named = [*network.named_parameters(), *network.named_buffers()]
    return [(name, tensor) for name, tensor in named if not tensor.is_complex()]


def _key(name: str, state: str) -> str:
    return f"optimizer.{name}/{state}"


def _refuse_left_over(folder: Path, what: str, left_over: set[str]) -> None:
    if left_over:
        raise RmcliError(
            f"checkpoint {folder} has {min(left_over)}, for which this {what.removesuffix('.')} has no place",
            "it belongs to another model or configuration",
        )
