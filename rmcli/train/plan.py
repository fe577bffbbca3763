"""Which groups run in which step, forward and rank: a pure function of the stored rows, the ranks and the config."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rmcli.config.layers import TrainSection


@dataclass(frozen=True, slots=True)
class Slice:
    """Groups `start` to `stop` of one stored row."""

    row: int
    start: int
    stop: int


Forward = tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: for each rank its forwards. `number` counts from 1, `epoch` from 0."""

    number: int
    epoch: int
    forwards: tuple[tuple[Forward, ...], ...]


@dataclass(frozen=True)
class RowSizes:
    """What plan knows of the stored rows: tokens of each group of each row."""

    group_tokens: Sequence[np.ndarray]

    @property
    def num_groups(self) -> int:
        return sum(len(tokens) for tokens in self.group_tokens)


def num_steps(sizes: RowSizes, train: TrainSection, packed: bool, ranks: int = 1) -> int:
    """Optimizer steps of the whole run."""
    if train.pairs_per_step is not None:
        per_epoch = -(-sizes.num_groups // train.pairs_per_step)
    else:
        rows = len(sizes.group_tokens) if packed else sizes.num_groups
        per_epoch = -(-rows // (train.batch_size * train.accumulative_counts * ranks))
    total = per_epoch * train.max_epochs
    return total if train.max_steps is None else min(total, train.max_steps)


def plan(
    sizes: RowSizes, train: TrainSection, packed: bool, max_packed_length: int, ranks: int = 1
) -> Iterator[Step]:
    """All steps in order. Every group comes once per epoch; the last step of an epoch may be smaller.

    With `pairs_per_step` packs are cut at group boundaries: groups come in seeded random order and are laid into
    forwards of at most `max_packed_length` tokens. Otherwise a forward is `batch_size` stored rows (single groups
    when not packed) and a step `accumulative_counts` forwards on each rank.
    """
    steps = (
        (epoch, forwards)
        for epoch in range(train.max_epochs)
        for forwards in _epoch(sizes, train, packed, max_packed_length, ranks, epoch)
    )
    for number, (epoch, forwards) in enumerate(islice(steps, train.max_steps), 1):
        yield Step(number, epoch, tuple(tuple(forwards[rank::ranks]) for rank in range(ranks)))


def _epoch(
    sizes: RowSizes, train: TrainSection, packed: bool, max_packed_length: int, ranks: int, epoch: int
) -> Iterator[list[Forward]]:
    generator = np.random.default_rng([train.seed, epoch])
    if train.pairs_per_step is None and packed:
        whole = [Slice(row, 0, len(tokens)) for row, tokens in enumerate(sizes.group_tokens)]
    else:
        whole = [
            Slice(row, group, group + 1)
            for row, tokens in enumerate(sizes.group_tokens)
            for group in range(len(tokens))
        ]
    order = [whole[index] for index in generator.permutation(len(whole))]
    if train.pairs_per_step is not None:
        limit = max_packed_length if packed else None
        for start in range(0, len(order), train.pairs_per_step):
            yield _fill_forwards(order[start : start + train.pairs_per_step], sizes, limit, train.batch_size)
        return
    per_step = train.batch_size * train.accumulative_counts * ranks
    for start in range(0, len(order), per_step):
        slices = order[start : start + per_step]
        yield [tuple(slices[at : at + train.batch_size]) for at in range(0, len(slices), train.batch_size)]


def _fill_forwards(slices: list[Slice], sizes: RowSizes, token_limit: int | None, batch_size: int) -> list[Forward]:
    """Groups of one step in order, a new forward where the tokens (packed) or the pairs (padded) are full."""
    forwards: list[list[Slice]] = []
    used = 0
    for piece in slices:
        tokens = int(sizes.group_tokens[piece.row][piece.start : piece.stop].sum())
        full = (
            used + tokens > token_limit if token_limit is not None else forwards and len(forwards[-1]) == batch_size
        )
        if not forwards or full:
            forwards.append([])
            used = 0
        forwards[-1].append(piece)
        used += tokens
    return [tuple(forward) for forward in forwards]
