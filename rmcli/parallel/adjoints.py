"""What the processes of a group tell each other inside a forward pass, each with its true adjoint for the backward.

Each process has a loss; what is differentiated is their sum over the group. So where all compute the same loss, each
divides it by the group's size, and gradients of weights are summed over the processes, not averaged.

By torch's functional collectives: they return new tensors, which selective recomputation can keep.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import _functional_collectives  # noqa: F401  (defines the operators)

from rmcli.parallel.sequence import SequenceGroup


def add_up(tensor: Tensor, group: SequenceGroup) -> Tensor:
    """The sum over the group, the same bits on each process. Gradients are added up as well."""
    return _AddUp.apply(tensor, group)  # pyright: ignore[reportReturnType]


def swap(parts: Tensor, group: SequenceGroup) -> Tensor:
    """(N, ...) part r is for process r -> (N, ...) part r is from process r. Gradients go back the same way."""
    return _Swap.apply(parts, group)  # pyright: ignore[reportReturnType]


class _AddUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _sum(tensor, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum(gradients[0], ctx.group), None


class _Swap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _exchange(parts, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradients[0], ctx.group), None


def _sum(tensor: Tensor, group: SequenceGroup) -> Tensor:
    if tensor.is_complex():  # the rotations of DeepSeek-V2
        return torch.view_as_complex(_sum(torch.view_as_real(tensor), group))
    operators = torch.ops._c10d_functional
    return operators.wait_tensor(operators.all_reduce(tensor.contiguous(), "sum", group.name))


def _exchange(parts: Tensor, group: SequenceGroup) -> Tensor:
    operators, one_each = torch.ops._c10d_functional, [1] * group.size
    return operators.wait_tensor(operators.all_to_all_single(parts.contiguous(), one_each, one_each, group.name))
