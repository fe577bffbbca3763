"""A network over several processes, by torch's FSDP2: each decoder layer a unit, the rest of the backbone, the head.

Every process holds its part of each weight, in float32; a unit is put together for its forward and its backward, in
bfloat16 where the run computes so. The head is a unit of its own, float32 in everything. Gradients are *summed* over
the processes: each one's loss is its share of the step's, so that no factor is needed. Where weights are replicated
and not cut, the parts are whole.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel

from rmcli.model import last_layer
from rmcli.model.adapter import settings_of, trained
from rmcli.model.network import backbone, score_head
from rmcli.parallel import world
from rmcli.parallel.parts import joined, own_part, part_of, whole


def shard(network: PreTrainedModel, mesh: DeviceMesh, is_reduced: bool, device: torch.device) -> None:
    """Cut a network that accelerate's `init_empty_weights` made without weights; they are then empty, to be filled.

    `is_reduced`: whether the run computes in bfloat16.
    """
    exact = MixedPrecisionPolicy()
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if is_reduced else exact
    body = backbone(network)
    layers = last_layer.find_layers(body, network.config.get_text_config().num_hidden_layers)
    # Put away after each forward, the outermost units, too: what is read between two is always the parts.
    for unit in (*(layers or ()), body):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(score_head(network), mesh=mesh, mp_policy=exact, reshard_after_forward=True)
    for unit in _units(network):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other; and it is the sum that is wanted
    _allocate(network, device)


def expect_last_forward(network: nn.Module, is_last: bool) -> None:
    """Say before a forward of a step whether it is the last: gradients of whole copies are added up once a step.

    Where weights are cut, each process keeps its part of the sums of every forward: whole gradients are too large.
    """
    for unit in _units(network):
        mesh = next(unit.parameters()).device_mesh  # pyright: ignore[reportAttributeAccessIssue]
        if mesh.size(mesh.ndim - 1) == 1:
            unit.set_requires_gradient_sync(is_last, recurse=False)
        elif mesh.ndim == 2:
            unit.set_requires_all_reduce(is_last, recurse=False)


def fill(network: nn.Module, full: MutableMapping[str, Tensor]) -> None:
    """Every weight and buffer from the first process, one after the other; `full` is taken apart on the way.

    It holds them by name there, on any device; on the others it is empty.
    """
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            part = own_part(tensor)
            whole_one = torch.empty(tensor.shape, dtype=tensor.dtype, device=part.device)
            if world.is_first():
                whole_one.copy_(full.pop(name))
            distributed.broadcast(torch.view_as_real(whole_one) if whole_one.is_complex() else whole_one, 0)
            part.copy_(part_of(whole_one, tensor))


def take_over(network: nn.Module, other: nn.Module) -> None:
    """The parts of another network that is cut alike, in place of its own; no number is copied."""
    weights, buffers = dict(other.named_parameters()), dict(other.named_buffers())
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, weight in module.named_parameters(recurse=False):
            own = own_part(weights[start + name].detach())
            made = nn.Parameter(joined(own, weight, tuple(weight.shape)), requires_grad=weight.requires_grad)
            module.register_parameter(name, made)
        for name, _ in module.named_buffers(recurse=False):
            module._buffers[name] = buffers[start + name]


def gathered(network: nn.Module) -> dict[str, Tensor]:
    """The whole state dict, in main memory, on the first process; empty on the others, which must call it, too.

    Of a network that lies there whole they are its own tensors. Beside frozen weights: those that trained alone.
    """
    found = {}
    named = network.state_dict() if settings_of(network) is None else trained(network)
    for name, tensor in named.items():
        full = whole(tensor.detach())
        if world.is_first():
            found[name] = full.to("cpu")
    return found


def _allocate(network: nn.Module, device: torch.device) -> None:
    """Memory for the parts. torch's `to_empty` would also forget buffers, such as the frequencies of rotations."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            own = torch.empty_like(own_part(weight), device=device)
            made = nn.Parameter(joined(own, weight, tuple(weight.shape)), requires_grad=weight.requires_grad)
            module.register_parameter(name, made)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)


def _units(network: nn.Module) -> Iterator[Any]:
    return (module for module in network.modules() if isinstance(module, FSDPModule))
