"""The groups of one step laid onto several ranks, which run equally many forwards and wait for each other in each.

A round is one forward of every rank, side by side. A forward is empty where there are too few groups.
"""

import heapq
from collections.abc import Iterable, Sequence

from rmcli.config.sections import TrainSection
from rmcli.records import BatchKind
from rmcli.train.pieces import PackSizes, PlannedForward, Slice

ByRank = tuple[tuple[PlannedForward, ...], ...]


def share_out(
    pieces: Sequence[Slice],
    sizes: PackSizes,
    train: TrainSection,
    kind: BatchKind,
    max_packed_length: int,
    ranks: int,
) -> ByRank:
    """For each rank its forwards. In each round the costliest goes to the rank that has least so far."""
    if kind == "packed":
        forwards = _packed(pieces, sizes, train, max_packed_length, ranks)
    elif kind == "padded":
        forwards = _padded(pieces, sizes, train.batch_size, ranks)
    else:
        forwards = _alone(pieces, sizes)
    dealt: list[list[PlannedForward]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for start in range(0, len(forwards), ranks):
        side_by_side = [*forwards[start : start + ranks], *[()] * ranks][:ranks]
        least_first = sorted(range(ranks), key=loads.__getitem__)
        for rank, (cost, forward) in zip(least_first, _costliest_first(side_by_side, sizes, kind), strict=True):
            dealt[rank].append(forward)
            loads[rank] += cost
    return tuple(map(tuple, dealt))


def slowest_over_mean(steps: Iterable[ByRank], sizes: PackSizes, kind: BatchKind) -> float:
    """How much longer the slowest rank of each round works than the mean one, over all rounds; 1 is perfect."""
    slowest = mean = 0.0
    for by_rank in steps:
        for side_by_side in zip(*by_rank, strict=True):
            costs = [sizes.cost(forward, kind) for forward in side_by_side]
            slowest += max(costs)
            mean += sum(costs) / len(costs)
    return slowest / mean


def _costliest_first(
    forwards: Iterable[PlannedForward], sizes: PackSizes, kind: BatchKind
) -> list[tuple[float, PlannedForward]]:
    with_costs = [(sizes.cost(forward, kind), forward) for forward in forwards]
    return sorted(with_costs, key=lambda one: one[0], reverse=True)


def _packed(
    pieces: Sequence[Slice], sizes: PackSizes, train: TrainSection, max_packed_length: int, ranks: int
) -> list[PlannedForward]:
    """As few rounds as the tokens (without `pairs_per_step`: the packs) need; the costliest forwards side by side."""
    by_tokens = train.pairs_per_step is not None
    costs, order = zip(*_costliest_first(((piece,) for piece in pieces), sizes, "packed"), strict=True)
    takes = [sizes.tokens(forward, "packed") if by_tokens else 1 for forward in order]
    room = max_packed_length if by_tokens else train.batch_size
    forwards = [tuple(order[index][0] for index in forward) for forward in _lay(costs, takes, room, ranks)]
    return [forward for _, forward in _costliest_first(forwards, sizes, "packed")]


def _padded(pieces: Sequence[Slice], sizes: PackSizes, batch_size: int, ranks: int) -> list[PlannedForward]:
    """In each round groups of as many rows, about as long, in equal numbers."""
    order = sorted(pieces, key=lambda piece: (sizes.rows((piece,)), sizes.tokens((piece,), "padded")), reverse=True)
    rounds = -(-len(order) // (batch_size * ranks))
    per_round = _up_to_a_multiple(-(-len(order) // rounds), ranks)
    forwards: list[PlannedForward] = []
    for start in range(0, len(order), per_round):
        some = order[start : start + per_round]
        laid = _lay([sizes.rows((piece,)) for piece in some], [1] * len(some), batch_size, ranks)
        forwards += [tuple(some[index] for index in forward) for forward in laid]
    return forwards


def _alone(pieces: Sequence[Slice], sizes: PackSizes) -> list[PlannedForward]:
    """One group is one forward, of as many calls of the backbone as it has responses: alike in each round."""
    groups = [(Slice(p.pack, group, group + 1),) for p in pieces for group in range(p.start, p.stop)]
    return sorted(groups, key=lambda group: (sizes.rows(group), sizes.cost(group, "single")), reverse=True)


def _lay(costs: Sequence[float], takes: Sequence[int], room: int, ranks: int) -> list[list[int]]:
    """Indices laid into forwards with so much room each, in as few rounds as they fit in."""
    number = _up_to_a_multiple(-(-sum(takes) // room), ranks)
    while (laid := _lay_into(number, costs, takes, room)) is None:
        number += ranks
    return laid


def _lay_into(number: int, costs: Sequence[float], takes: Sequence[int], room: int) -> list[list[int]] | None:
    """Each index in order into the emptiest of `number` forwards that has room for it; None where none has.

    What takes more than all the room of a forward has one to itself.
    """
    forwards: list[list[int]] = [[] for _ in range(number)]
    taken = [0] * number
    emptiest = [(0.0, forward) for forward in range(number)]
    for index, (cost, take) in enumerate(zip(costs, takes, strict=True)):
        full = []
        while emptiest and taken[emptiest[0][1]] and taken[emptiest[0][1]] + take > room:
            full.append(heapq.heappop(emptiest))
        if not emptiest:
            return None
        load, forward = emptiest[0]
        forwards[forward].append(index)
        taken[forward] += take
        heapq.heapreplace(emptiest, (load + cost, forward))
        for one in full:
            heapq.heappush(emptiest, one)
    return forwards


def _up_to_a_multiple(number: int, ranks: int) -> int:
    return number + -number % ranks
