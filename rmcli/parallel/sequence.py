"""Groups of adjacent processes that share one sequence."""

from dataclasses import dataclass
from typing import Any

from torch import distributed

from rmcli.parallel import world


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share a sequence with this one: the group's name in torch, this one's number in it, size.

    Plain values: a network that holds it can be copied.
    """

    name: str
    rank: int
    size: int


def own_group(size: int) -> SequenceGroup | None:
    """The group of this process, None where each is alone: ranks 0 to size - 1 are the first, and so on.

    Called once by all processes: it makes torch's process groups. `size` divides their number.
    """
    if size == 1:
        return None
    groups: list[Any] = [
        distributed.new_group(list(range(first, first + size)), timeout=world.PATIENCE)
        for first in range(0, world.size(), size)
    ]
    own, rank = divmod(world.rank(), size)
    return SequenceGroup(groups[own].group_name, rank, size)
