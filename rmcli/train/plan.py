"""Which groups run in which step, forward and rank: a pure function of the packs, the ranks and the config."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from rmcli.config.sections import Config, TrainSection
from rmcli.records import BatchKind
from rmcli.train.balance import share_out
from rmcli.train.pieces import PackSizes, PlannedForward, Slice


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: for each rank its forwards, equally many. `number` counts from 1, `epoch` from 0."""

    number: int
    epoch: int
    forwards: tuple[tuple[PlannedForward, ...], ...]


def num_steps(sizes: PackSizes, train: TrainSection, kind: BatchKind, ranks: int = 1) -> int:
    """Optimizer steps of the whole run."""
    if train.pairs_per_step is not None:
        per_epoch = -(-sizes.num_groups // train.pairs_per_step)
    else:
        rows = sizes.num_groups if kind == "padded" else len(sizes.group_tokens)
        per_epoch = -(-rows // (train.batch_size * train.accumulative_counts * ranks))
    total = per_epoch * train.max_epochs
    return total if train.max_steps is None else min(total, train.max_steps)


def plan(
    sizes: PackSizes, train: TrainSection, kind: BatchKind, max_packed_length: int, ranks: int = 1
) -> Iterator[Step]:
    """All steps in order. Every group comes once per epoch; the last step of an epoch may be smaller.

    With `pairs_per_step` packs are cut at group boundaries: groups come in seeded random order, as many a step on any
    number of ranks, and are laid into forwards of at most `max_packed_length` tokens. Otherwise a forward is
    `batch_size` packs (single groups when padded) and a step `accumulative_counts` forwards on each rank. Several
    ranks share a step's groups by what they cost (`balance`); their forwards are equally many, some may be empty.
    """
    steps = (
        (epoch, pieces) for epoch in range(train.max_epochs) for pieces in _epoch(sizes, train, kind, ranks, epoch)
    )
    for number, (epoch, pieces) in enumerate(islice(steps, train.max_steps), 1):
        if ranks == 1:
            forwards = (tuple(_in_order(pieces, sizes, train, kind, max_packed_length)),)
        else:
            forwards = share_out(pieces, sizes, train, kind, max_packed_length, ranks)
        yield Step(number, epoch, forwards)


def _epoch(sizes: PackSizes, train: TrainSection, kind: BatchKind, ranks: int, epoch: int) -> Iterator[list[Slice]]:
    """The groups of each step, in seeded random order."""
    generator = np.random.default_rng([train.seed, epoch])
    if train.pairs_per_step is None and kind != "padded":
        whole = [Slice(pack, 0, len(tokens)) for pack, tokens in enumerate(sizes.group_tokens)]
    else:
        whole = [
            Slice(pack, group, group + 1)
            for pack, tokens in enumerate(sizes.group_tokens)
            for group in range(len(tokens))
        ]
    order = [whole[index] for index in generator.permutation(len(whole))]
    per_step = train.pairs_per_step or train.batch_size * train.accumulative_counts * ranks
    for start in range(0, len(order), per_step):
        yield order[start : start + per_step]


def _in_order(
    pieces: list[Slice], sizes: PackSizes, train: TrainSection, kind: BatchKind, max_packed_length: int
) -> list[PlannedForward]:
    """One rank's forwards: one filled after the other."""
    if train.pairs_per_step is None:
        return [tuple(pieces[at : at + train.batch_size]) for at in range(0, len(pieces), train.batch_size)]
    limit = None if kind == "padded" else max_packed_length
    return _fill_forwards(pieces, sizes, limit, train.batch_size)


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


def largest_forward(config: Config, sizes: PackSizes, kind: BatchKind, ranks: int = 1) -> int:
    """Tokens of the largest forward of the run, an upper bound: without sharing a pair's prompt runs twice.

    Of several ranks the largest that is planned for one epoch.
    """
    train = config.train
    if ranks > 1:
        steps = plan(sizes, _one_epoch(train), kind, config.data.max_packed_length, ranks)
        return max(sizes.tokens(forward, kind) for step in steps for rank in step.forwards for forward in rank)
    if kind == "padded":
        return train.batch_size * 2 * config.data.max_length
    times = 2 if kind == "single" else 1
    if train.pairs_per_step is not None:
        largest = sorted((int(n) for tokens in sizes.group_tokens for n in tokens), reverse=True)
        return times * min(config.data.max_packed_length, sum(largest[: train.pairs_per_step]))
    packs = sorted((int(tokens.sum()) for tokens in sizes.group_tokens), reverse=True)
    return times * sum(packs[: train.batch_size])


def has_several_forwards(config: Config, sizes: PackSizes, kind: BatchKind, ranks: int = 1) -> bool:
    """Whether some step adds up the gradients of more than one forward on a rank."""
    steps = plan(sizes, _one_epoch(config.train), kind, config.data.max_packed_length, ranks)
    return kind == "single" or any(len(step.forwards[0]) > 1 for step in steps)


def _one_epoch(train: TrainSection) -> TrainSection:
    return train.model_copy(update={"max_epochs": 1})
