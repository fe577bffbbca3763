"""What processes tell each other outside a backward pass. On one process each gives back what it was given."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from rmcli.errors import FailedElsewhere, RmcliError
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


# A group of processes other than all of them, or of the same for a thread beside the training; None: the usual one.
Group = distributed.ProcessGroup | None


def gather(value: Value, group: Group = None) -> list[Value]:
    """What each process gave, by rank, on every process. Values are pickled by these processes for each other."""
    if world.size() == 1:
        return [value]
    values: list[Any] = [None] * world.size()
    distributed.all_gather_object(values, value, group)
    return values


def from_first(value: Value, group: Group = None) -> Value:
    """What the first process gave; the others' values are not looked at."""
    if world.size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, group=group)
    return values[0]


@contextmanager
def together(group: Group = None) -> Iterator[None]:
    """What each process does for itself; where one fails all do, the lowest with its own error.

    Raises FailedElsewhere on the others, whether they have failed themselves or not.
    """
    if world.size() == 1:
        yield
        return
    error = None
    try:
        yield
    except BaseException as caught:  # noqa: BLE001  (told to the others, and raised again)
        error = caught
    told = gather(None if error is None else _told(error), group)
    failed = [rank for rank, one in enumerate(told) if one is not None]
    if error is not None and (failed[0] == world.rank() or not isinstance(error, RmcliError)):
        raise error
    if failed:
        message, exit_code = told[failed[0]] or ("", 1)
        raise FailedElsewhere(f"process {failed[0]}: {message}", exit_code) from error


def _told(error: BaseException) -> tuple[str, int]:
    """What the others are to know of it: message and exit code."""
    if isinstance(error, RmcliError):
        return error.message, error.exit_code
    return f"{type(error).__name__}: {error}", 1


def on_first(function: Callable[[], Value], group: Group = None) -> Value:
    """What the first process's call gives, on all; the others wait. Raises as `together` does."""
    value: Any = None
    with together(group):
        if world.is_first():
            value = function()
    return from_first(value, group)
