"""Which conversations of a batch share a prompt: found in their tokens, whichever requests they came with."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rmcli.records import TokenGroup

_WORTH = 8  # tokens in common from which on a shared prompt saves anything


def shared_prompts(sides: Sequence[TokenGroup]) -> list[list[int]]:
    """Indices of the sides in groups; what the members of a group begin with is computed once.

    In order of their tokens, neighbours have most in common. They stay together unless one of them has more than
    twice as much in common with its neighbour on the other side.
    """
    tokens = [side.responses[0] for side in sides]
    order = sorted(range(len(sides)), key=lambda index: tokens[index].astype(">i4").tobytes())
    common = [_in_common(tokens[one], tokens[other]) for one, other in pairwise(order)]
    groups = [[index] for index in order[:1]]
    for number, index in enumerate(order[1:]):
        around = max(common[max(number - 1, 0) : number + 2])
        if common[number] >= _WORTH and 2 * common[number] >= around:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _in_common(one: Any, other: Any) -> int:
    limit = min(len(one), len(other))
    different = np.flatnonzero(one[:limit] != other[:limit])
    return int(different[0]) if len(different) else limit
