"""What processes tell each other outside a backward pass. On one process each gives back what it was given."""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rmcli.parallel import world

Value = TypeVar("Value")


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place; the same bits on each."""
    if world.size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum over all processes, in place."""
    if world.size() > 1:
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def largest_number(number: int) -> int:
    """The largest that any process gave, agreed on the host: no device is waited for."""
    return int(largest(torch.tensor(number)))


def gather(value: Value) -> list[Value]:
    """What each process gave, by rank, on every process. Values are pickled by these processes for each other."""
    if world.size() == 1:
        return [value]
    values: list[Any] = [None] * world.size()
    distributed.all_gather_object(values, value)
    return values


def from_first(value: Value) -> Value:
    """What the first process gave; the others' values are not looked at."""
    if world.size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    """Until every process is here."""
    gather(None)
