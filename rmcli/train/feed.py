"""What each step needs, built ahead of it: while the device works on one step, a thread lays out the next."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from rmcli.model.attention.layout import BatchShape
from rmcli.model.batch import PackedBatch, build_batch, build_targets, is_used
from rmcli.model.flops import FlopCounter
from rmcli.model.losses import Targets
from rmcli.packs.reader import PackedSplit
from rmcli.records import BatchKind, TokenGroup
from rmcli.train.pieces import Slice
from rmcli.train.plan import Step

STEPS_AHEAD = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Forward:
    """One forward and backward of this rank, on the device."""

    batch: Any  # PackedBatch, SingleBatch or PaddedBatch
    targets: Targets


@dataclass(frozen=True)
class StepFeed:
    """A step with its forwards of this rank, and what all ranks' forwards together hold.

    `flops` are the model FLOPs of this rank's forwards as they run, `effective_flops` those of the same conversations
    unshared.
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
    """Builds a step's feed; `kind` is how conversations are run.

    `shape` is what packed rows are filled up to, None where they keep their own size; it grows when it must.
    """

    split: PackedSplit
    loss_type: str
    kind: BatchKind
    pad_token_id: int
    device: torch.device
    counter: FlopCounter
    shape: BatchShape | None = None

    def build(self, step: Step) -> StepFeed:
        """Counted over the whole step and all ranks before the first backward: every group weighs the same."""
        ranks = [[groups_of(self.split, forward, self.loss_type) for forward in rank] for rank in step.forwards]
        everything = [group for rank in ranks for groups in rank for group in groups]
        own = [groups for groups in ranks[0] if groups]
        forwards = tuple(self._forward(groups) for groups in own)
        together = [group for groups in own for group in groups]
        return StepFeed(
            step=step,
            forwards=forwards,
            total_weight=sum(group.weight for group in everything),
            total_scores=sum(len(group.responses) for group in everything),
            row_ids=tuple(group.row_id for group in everything),
            num_tokens=sum(forward.batch.num_tokens for forward in forwards),
            flops=self.counter.of_groups(together, shared=self.kind == "packed"),
            effective_flops=self.counter.of_groups(together, shared=False),
        )

    def _forward(self, groups: list[TokenGroup]) -> Forward:
        batch = build_batch(self.kind, groups, self.pad_token_id, self.device, self.shape)
        if isinstance(batch, PackedBatch):
            self.shape = batch.layout.shape
            _ = batch.layout.copies, batch.layout.at_scores  # here, not in the first layer
        return Forward(batch, build_targets(groups, self.loss_type, self.device))


def groups_of(split: PackedSplit, forward: Iterable[Slice], loss_type: str) -> list[TokenGroup]:
    """The groups of one forward that this loss can learn from; job has counted the others."""
    groups = [group for part in forward for group in split.groups(part.pack, part.start, part.stop)]
    return [group for group in groups if is_used(group, loss_type)]


def shape_of_all(forwards: Iterable[Iterable[Slice]], split: PackedSplit) -> BatchShape:
    """The one shape that all these forwards fill up to, no larger than the largest of them needs.

    Offsets of segments that do not exist and lengths that none has cost a kernel time as well. Groups that the loss
    does not use count, too: a forward without them is filled up.
    """
    packs = [(split.group_tokens(pack), *split.group_conversations(pack)) for pack in range(len(split))]
    columns = np.stack([np.concatenate(column) for column in zip(*packs, strict=True)])  # one per group of the split
    first = [0, *itertools.accumulate(split.groups_per_pack)]
    sizes = []
    for forward in forwards:
        groups = [g for part in forward for g in range(first[part.pack] + part.start, first[part.pack] + part.stop)]
        tokens, numbers, prefixes, longest = columns[:, groups]
        unshared = tokens + (numbers - 1) * prefixes
        sizes.append((tokens.sum(), numbers.sum(), unshared.sum(), longest.max(), numbers.max()))
    tokens, numbers, unshared, longest, most = np.array(sizes).T
    num_tokens, longest = (int(largest) + -int(largest) % 128 for largest in (tokens.max(), longest.max()))
    num_segments, num_keys = BatchShape(num_tokens, longest).filled_up(tokens, numbers, unshared)
    return BatchShape(num_tokens, longest, int(num_keys.max()), int(num_segments.max()), int(most.max()) - 1)


def ahead(build: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`build` of each item in order, STEPS_AHEAD of them ahead in one thread. What it raises comes out here."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
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
