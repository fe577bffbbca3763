"""What a plan is made of: groups of packs, and how large they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmcli.model.flops import FlopCounter
from rmcli.packs.reader import PackedSplit
from rmcli.records import BatchKind


@dataclass(frozen=True, slots=True)
class Slice:
    """Groups `start` to `stop` of one pack."""

    pack: int
    start: int
    stop: int


PlannedForward = tuple[Slice, ...]
Columns = Sequence[np.ndarray]  # of each pack one number for each of its groups


@dataclass(frozen=True)
class PackSizes:
    """What plan knows of the packs. One rank needs the tokens only.

    `longest`: tokens of a group's longest conversation. `flops` of the group as it is packed, `flops_alone` of its
    conversations one by one. What the loss does not use has tokens, but no responses and no FLOPs: it is not run.
    """

    group_tokens: Columns
    num_responses: Columns = ()
    longest: Columns = ()
    flops: Columns = ()
    flops_alone: Columns = ()

    @staticmethod
    def of(split: PackedSplit, counter: FlopCounter, is_used_G: np.ndarray | None = None) -> "PackSizes":
        """All groups of a split; `is_used_G`: whether the loss uses each, all of them where it is not told."""
        run = 1 if is_used_G is None else is_used_G
        prefixes_G, numbers_G, responses_R = split.conversation_lengths()
        starts_G = np.cumsum(numbers_G) - numbers_G
        columns = (
            prefixes_G + np.add.reduceat(responses_R, starts_G),
            numbers_G * run,
            prefixes_G + np.maximum.reduceat(responses_R, starts_G),
            counter.of_lengths(prefixes_G, numbers_G, responses_R) * run,
            counter.of_lengths(prefixes_G, numbers_G, responses_R, shared=False) * run,
        )
        first = np.cumsum(split.groups_per_pack)[:-1]
        return PackSizes(*(np.split(column, first) for column in columns))

    @property
    def num_groups(self) -> int:
        return sum(len(tokens) for tokens in self.group_tokens)

    def tokens(self, forward: PlannedForward, kind: BatchKind) -> int:
        """Tokens that a forward runs on; an upper bound of those of conversations one by one."""
        if kind == "packed":
            return int(_total(self.group_tokens, forward))
        longest = max((int(self.longest[p.pack][p.start : p.stop].max()) for p in forward), default=0)
        return self.rows(forward) * longest

    def rows(self, forward: PlannedForward) -> int:
        """Conversations of a forward."""
        return int(_total(self.num_responses, forward))

    def cost(self, forward: PlannedForward, kind: BatchKind) -> float:
        """What forwards of one kind are compared by: FLOPs, or the tokens of padded rows."""
        if kind == "padded":
            return float(self.tokens(forward, kind))
        return _total(self.flops if kind == "packed" else self.flops_alone, forward)


def _total(column: Columns, forward: PlannedForward) -> float:
    """Most pieces are one group, and a plan asks for each several times: a sum of one number is ten times as slow."""
    return sum(
        float(column[piece.pack][piece.start])
        if piece.stop - piece.start == 1
        else float(column[piece.pack][piece.start : piece.stop].sum())
        for piece in forward
    )
