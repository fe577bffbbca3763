"""Attention over a row whose tokens lie on several processes, by any backend: each runs some heads on all tokens.

DeepSpeed's Ulysses: queries, keys and values are swapped, tokens against heads, and the results are swapped back.
The backend sees the whole row and its layout.

Axes: N processes of the group, T tokens of the row, S scores, H heads, D head size.
"""

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad

from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import ScoreLayout
from rmcli.model.attention.row_share import RowShare
from rmcli.parallel import adjoints
from rmcli.parallel.sequence import SequenceGroup


def attend(backend: Callable[[Call], Tensor], call: Call, share: RowShare) -> Tensor:
    """(1, T / N, H, D) of a call whose tensors hold this process's tokens; its layout is that of the whole row.

    At the reward positions each process has all queries, (1, H, S, D), and gets all results, (1, S, H, D).
    """
    group, num_heads = share.group, call.query.shape[1]
    call = _with_heads_that_divide(call, group.size)
    at_scores = isinstance(share.whole, ScoreLayout)
    output = backend(
        call._replace(
            query=_own_heads(call.query, 1, group) if at_scores else _swap(call.query, group),
            key=_swap(call.key, group),
            value=_swap(call.value, group),
            sinks=None if call.sinks is None else _own_heads(call.sinks, 0, group),
        )
    )
    output = _all_heads(output, group) if at_scores else _swap(output, group)
    return output[:, :, :num_heads].contiguous()


def _with_heads_that_divide(call: Call, size: int) -> Call:
    """Keys and values repeated for their queries where there are too few, and all filled up with heads of zeros.

    Queries of one head of keys lie side by side: repeating these keeps who reads whom.
    """
    num_heads, num_keys = call.query.shape[1], call.key.shape[1]
    wanted = math.lcm(num_keys, size)
    if num_heads % wanted:
        wanted = num_heads
    missing = -wanted % size

    def fill(tensor: Tensor) -> Tensor:
        return pad(tensor, (0, 0, 0, 0, 0, missing)) if missing else tensor

    def spread(tensor: Tensor) -> Tensor:
        return fill(tensor if wanted == num_keys else tensor.repeat_interleave(wanted // num_keys, dim=1))

    sinks = call.sinks if call.sinks is None or not missing else pad(call.sinks, (0, missing))
    return call._replace(query=fill(call.query), key=spread(call.key), value=spread(call.value), sinks=sinks)


def _swap(tensor: Tensor, group: SequenceGroup) -> Tensor:
    """(1, A, B / N, D) -> (1, A / N, B, D): axis A is dealt out, axis B comes together."""
    parts = tensor.reshape(group.size, -1, *tensor.shape[2:])
    return adjoints.swap(parts, group).transpose(0, 1).flatten(1, 2).unsqueeze(0)


def _own_heads(tensor: Tensor, axis: int, group: SequenceGroup) -> Tensor:
    number = tensor.shape[axis] // group.size
    return tensor.narrow(axis, group.rank * number, number)


def _all_heads(tensor: Tensor, group: SequenceGroup) -> Tensor:
    """(1, S, H / N, D) own heads -> (1, S, H, D)."""
    number = tensor.shape[2]
    before, after = group.rank * number, (group.size - 1 - group.rank) * number
    return adjoints.add_up(pad(tensor, (0, 0, before, after)), group)
