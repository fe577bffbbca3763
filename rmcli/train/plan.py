"""Which groups run in which step, forward and rank: a pure function of the packs, the ranks and the config."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rmcli.config.sections import Config, TrainSection
from rmcli.records import BatchKind


@dataclass(frozen=True, slots=True)
class Slice:
    """Groups `start` to `stop` of one pack."""

    pack: int
    start: int
    stop: int


PlannedForward = tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: for each rank its forwards. `number` counts from 1, `epoch` from 0."""

    number: int
    epoch: int
    forwards: tuple[tuple[PlannedForward, ...], ...]


@dataclass(frozen=True)
class PackSizes:
    """What plan knows of the packs: tokens of each group of each pack."""

    group_tokens: Sequence[np.ndarray]

    @property
    def num_groups(self) -> int:
        return sum(len(tokens) for tokens in self.group_tokens)


def num_steps(sizes: PackSizes, train: TrainSection, packed: bool, ranks: int = 1) -> int:
    """Optimizer steps of the whole run."""
    if train.pairs_per_step is not None:
        per_epoch = -(-sizes.num_groups // train.pairs_per_step)
    else:
        rows = len(sizes.group_tokens) if packed else sizes.num_groups
        per_epoch = -(-rows // (train.batch_size * train.accumulative_counts * ranks))
    total = per_epoch * train.max_epochs
    return total if train.max_steps is None else min(total, train.max_steps)


def plan(
    sizes: PackSizes, train: TrainSection, packed: bool, max_packed_length: int, ranks: int = 1
) -> Iterator[Step]:
    """All steps in order. Every group comes once per epoch; the last step of an epoch may be smaller.

    With `pairs_per_step` packs are cut at group boundaries: groups come in seeded random order and are laid into
    forwards of at most `max_packed_length` tokens. Otherwise a forward is `batch_size` packs (single groups
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
    sizes: PackSizes, train: TrainSection, packed: bool, max_packed_length: int, ranks: int, epoch: int
) -> Iterator[list[PlannedForward]]:
    generator = np.random.default_rng([train.seed, epoch])
    if train.pairs_per_step is None and packed:
        whole = [Slice(pack, 0, len(tokens)) for pack, tokens in enumerate(sizes.group_tokens)]
    else:
        whole = [
            Slice(pack, group, group + 1)
            for pack, tokens in enumerate(sizes.group_tokens)
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


def _fill_forwards(
    slices: list[Slice], sizes: PackSizes, token_limit: int | None, batch_size: int
) -> list[PlannedForward]:
    """Groups of one step in order, a new forward where the tokens (packed) or the pairs (padded) are full."""
    forwards: list[list[Slice]] = []
    used = 0
    for piece in slices:
        tokens = int(sizes.group_tokens[piece.pack][piece.start : piece.stop].sum())
        full = (
            used + tokens > token_limit if token_limit is not None else forwards and len(forwards[-1]) == batch_size
        )
        if not forwards or full:
            forwards.append([])
            used = 0
        forwards[-1].append(piece)
        used += tokens
    return [tuple(forward) for forward in forwards]


def largest_forward(config: Config, sizes: PackSizes, kind: BatchKind) -> int:
    """Tokens of the largest forward of the run, an upper bound: without sharing a pair's prompt runs twice."""
    train = config.train
    if kind == "padded":
        return train.batch_size * 2 * config.data.max_length
    times = 2 if kind == "single" else 1
    if train.pairs_per_step is not None:
        largest = sorted((int(n) for tokens in sizes.group_tokens for n in tokens), reverse=True)
        return times * min(config.data.max_packed_length, sum(largest[: train.pairs_per_step]))
    packs = sorted((int(tokens.sum()) for tokens in sizes.group_tokens), reverse=True)
    return times * sum(packs[: train.batch_size])


def has_several_forwards(config: Config, sizes: PackSizes, kind: BatchKind) -> bool:
    """Whether some step adds up the gradients of more than one forward."""
    one_epoch = config.train.model_copy(update={"max_epochs": 1})
    steps = plan(sizes, one_epoch, kind != "padded", config.data.max_packed_length)
    return kind == "single" or any(len(step.forwards[0]) > 1 for step in steps)
