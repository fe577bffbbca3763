"""What each step needs, built ahead of it: while the device works on one step, a thread lays out the next."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from rmcli.model.attention.layout import BatchShape
from rmcli.model.batch import PackedBatch, is_used, segments_of
from rmcli.model.flops import FlopCounter
from rmcli.packs.reader import PackedSplit
from rmcli.parallel import world
from rmcli.records import BatchKind, TokenGroup
from rmcli.train.pieces import Slice
from rmcli.train.plan import Step
from rmcli.train.share import Forward, Share

STEPS_AHEAD = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class StepFeed:
    """A step with its forwards of this rank, some maybe empty, and what all ranks' forwards together hold.

    Of this rank's groups are `num_tokens`, `flops` (model FLOPs as they run) and `effective_flops` (those of the same
    conversations unshared).
    """

    step: Step
    forwards: tuple[Forward, ...]
    total_weight: float
    total_scores: int
    row_ids: tuple[int, ...]
    num_tokens: int
    flops: float
    effective_flops: float


@dataclass
class Feeder:
    """Builds a step's feed; `kind` is how conversations are run, `rank` whose forwards are built of the `ranks`.

    `shape` is what packed rows are filled up to, None where they keep their own size; it grows when it must, by the
    forwards of all ranks, so that it is the same on each.
    """

    split: PackedSplit
    loss_type: str
    kind: BatchKind
    pad_token_id: int
    device: torch.device
    counter: FlopCounter
    shape: BatchShape | None = None
    rank: int = 0
    ranks: int = 1

    def build(self, step: Step) -> StepFeed:
        """Counted over the whole step and all ranks before the first backward: every group weighs the same."""
        ranks = [[groups_of(self.split, forward, self.loss_type) for forward in rank] for rank in step.forwards]
        everything = [group for rank in ranks for groups in rank for group in groups]
        rounds = [side_by_side for side_by_side in zip(*ranks, strict=True) if any(side_by_side)]
        forwards = tuple(self._forward(side_by_side) for side_by_side in rounds)
        together = [group for groups in ranks[self.rank] for group in groups]
        return StepFeed(
            step=step,
            forwards=forwards,
            total_weight=sum(group.weight for group in everything),
            total_scores=sum(len(group.responses) for group in everything),
            row_ids=tuple(group.row_id for group in everything),
            num_tokens=sum(forward.num_tokens for forward in forwards),
            flops=self.counter.of_groups(together, shared=self.kind == "packed"),
            effective_flops=self.counter.of_groups(together, shared=False),
        )

    def _forward(self, side_by_side: Sequence[list[TokenGroup]]) -> Forward:
        """This rank's of a round."""
        shares = [Share.of(side_by_side, rank, self.kind) for rank in range(self.ranks)]
        if self.shape is not None and self.kind == "packed":
            for share in shares:
                self.shape = self.shape.grown_for(segments_of(share.all_groups))
        forward = shares[self.rank].forward(self.kind, self.loss_type, self.pad_token_id, self.device, self.shape)
        if isinstance(forward.batch, PackedBatch):
            _ = forward.batch.layout.copies, forward.batch.layout.at_scores  # here, not in the first layer
        return forward


def groups_of(split: PackedSplit, forward: Iterable[Slice], loss_type: str) -> list[TokenGroup]:
    """The groups of one forward that this loss can learn from; job has counted the others."""
    groups = [group for part in forward for group in split.groups(part.pack, part.start, part.stop)]
    return [group for group in groups if is_used(group, loss_type)]


def shape_of_all(forwards: Iterable[Iterable[Slice]], split: PackedSplit) -> BatchShape:
    """The one shape that all these forwards, some maybe empty, fill up to, no larger than the largest of them needs.

    Offsets of segments that do not exist and lengths that none has cost a kernel time as well. Groups that the loss
    does not use count, too: a forward without them is filled up.
    """
    packs = [(split.group_tokens(pack), *split.group_conversations(pack)) for pack in range(len(split))]
    columns = np.stack([np.concatenate(column) for column in zip(*packs, strict=True)])  # one per group of the split
    first = [0, *itertools.accumulate(split.groups_per_pack)]
    sizes = []
    for forward in filter(None, forwards):
        groups = [g for part in forward for g in range(first[part.pack] + part.start, first[part.pack] + part.stop)]
        tokens, numbers, prefixes, longest = columns[:, groups]
        unshared = tokens + (numbers - 1) * prefixes
        sizes.append((tokens.sum(), numbers.sum(), unshared.sum(), longest.max(), numbers.max()))
    tokens, numbers, unshared, longest, most = np.array(sizes).T
    num_tokens, longest = (int(largest) + -int(largest) % 128 for largest in (tokens.max(), longest.max()))
    num_segments, num_keys = BatchShape(num_tokens, longest).filled_up(tokens, numbers, unshared)
    return BatchShape(num_tokens, longest, int(num_keys.max()), int(num_segments.max()), int(most.max()) - 1)


def ahead(build: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """`build` of each item in order, STEPS_AHEAD of them ahead in one thread. What it raises comes out here."""
    begin = world.use_own_gpu if world.size() > 1 else None
    with ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=begin) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(build, item))
                if len(waiting) > STEPS_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
