"""Token groups to packs: best-fit-decreasing inside shuffled windows. A group is never split."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from rmcli.records import Pack, TokenGroup

# Groups packed together: enough for nearly full packs, few enough to hold in memory.
WINDOW = 16384


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`: longest first, each into the fullest bin that holds it.

    Every length must be <= capacity. O(n log n) apart from list insertion.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free space, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert length <= capacity
        place = bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([index])
            free, number = capacity - length, len(bins) - 1
        else:
            free, number = room.pop(place)
            bins[number].append(index)
            free -= length
        insort(room, (free, number))
    return bins


def pack(groups: Sequence[TokenGroup], max_packed_length: int, shuffle: bool, seed: int) -> Iterator[Pack]:
    """One window of groups to packs of at most `max_packed_length` tokens each.

    With `shuffle` the window is packed best-fit, and both the packs and the groups inside a pack come in seeded
    random order: best-fit sorts by length, and neighbours must not be alike. Without it, input order is kept and a
    pack ends where the next group no longer fits.
    """
    if not shuffle:
        yield from _pack_in_order(groups, max_packed_length)
        return
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(groups))  # equal lengths must not keep input order either
    shuffled = [groups[index] for index in order]
    bins = best_fit_decreasing([group.num_tokens for group in shuffled], max_packed_length)
    for number in generator.permutation(len(bins)):
        yield Pack(tuple(shuffled[index] for index in generator.permutation(bins[number])))


def _pack_in_order(groups: Iterable[TokenGroup], max_packed_length: int) -> Iterator[Pack]:
    filling: list[TokenGroup] = []
    used = 0
    for group in groups:
        if filling and used + group.num_tokens > max_packed_length:
            yield Pack(tuple(filling))
            filling, used = [], 0
        filling.append(group)
        used += group.num_tokens
    if filling:
        yield Pack(tuple(filling))
