"""Groups of adjacent processes that share one sequence."""

from dataclasses import dataclass
from typing import Any

from torch import distributed

from rmcli.errors import ConfigError
from rmcli.parallel import world


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share a sequence with this one: the group's name in torch, this one's number in it, size.

    Plain values: a network that holds it can be copied.
    """

    name: str
    rank: int
    size: int


def check_size(size: int, num_processes: int) -> None:
    """Raise ConfigError when so many processes cannot be cut into groups of `size`."""
    if num_processes % size:
        fitting = [str(number) for number in range(1, num_processes + 1) if num_processes % number == 0]
        raise ConfigError(
            f"parallel.sequence_parallel_size = {size} does not divide the number of processes, {num_processes}",
            f"set it to {', '.join(fitting[:-1])} or {fitting[-1]}" if fitting[1:] else "start more processes",
        )


def own_group(size: int) -> SequenceGroup | None:
    """The group of this process, None where each is alone: ranks 0 to size - 1 are the first, and so on.

    Called once by all processes: it makes torch's process groups. Raises ConfigError when `size` does not divide.
    """
    check_size(size, world.size())
    if size == 1:
        return None
    groups: list[Any] = [
        distributed.new_group(list(range(first, first + size)), timeout=world.PATIENCE)
        for first in range(0, world.size(), size)
    ]
    own, rank = divmod(world.rank(), size)
    return SequenceGroup(groups[own].group_name, rank, size)
