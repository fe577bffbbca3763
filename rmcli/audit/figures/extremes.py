"""The longest conversations, the shortest replies, the most uneven groups."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.split import Split
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import EXCERPT_TOKENS, NUM_EXTREMES, Figures

KINDS = ("longest", "longest_ratio", "shortest_reply")


class _Extreme:
    """The few rows with the largest value, each by its most extreme conversation; of equal ones the earliest rows."""

    def __init__(self) -> None:
        self._offered = 0
        self._kept: list[tuple[float, int, int, Figures]] = []  # a heap: value, -row, -place, description

    def offer(self, values: np.ndarray, row_ids: np.ndarray, describe: Callable[[int], Figures]) -> None:
        """`values` and `row_ids` (N,) of some packs; `describe(n)` is called for those that are kept."""
        worst = self._kept[0][0] if len(self._kept) == NUM_EXTREMES else -np.inf
        for index in np.flatnonzero((values >= worst) & (values > -np.inf)).tolist():
            key = (float(values[index]), -int(row_ids[index]), -(self._offered + index))
            if len(self._kept) < NUM_EXTREMES or key > self._kept[0][:3]:
                self._keep((*key, describe(index)))
        self._offered += len(values)

    def _keep(self, entry: tuple[float, int, int, Figures]) -> None:
        value, row, _, _ = entry
        same = next((kept for kept in self._kept if kept[1] == row), None)
        if same is not None:  # its other answers, and copies that its source's weight makes
            if value > same[0]:
                self._kept.remove(same)
                heapq.heapify(self._kept)
                heapq.heappush(self._kept, entry)
            return
        push = heapq.heappush if len(self._kept) < NUM_EXTREMES else heapq.heapreplace
        push(self._kept, entry)

    @staticmethod
    def best(parts: Sequence["_Extreme"]) -> list[Figures]:
        """Of several splits together, the most extreme first."""
        everything = [entry for part in parts for entry in part._kept]
        return [entry[3] for entry in sorted(everything, key=lambda entry: entry[:3], reverse=True)[:NUM_EXTREMES]]


class Extremes:
    """The most extreme conversations of one split, of each kind."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.kinds = {kind: _Extreme() for kind in KINDS}
        self.num_without_header = 0  # replies whose beginning is not known

    def add(self, packs: FlatPacks) -> None:
        replies, has_header = packs.reply_lengths(self.split.text.header)
        self.num_without_header += int((~has_header).sum())
        first = np.cumsum(packs.num_responses) - packs.num_responses
        longest, shortest = np.maximum.reduceat(replies, first), np.minimum.reduceat(replies, first)
        conversations = packs.conversation_lengths

        def describe(conversation: int) -> Figures:
            group = int(packs.group_of[conversation])
            whole = np.concatenate([packs.prompt(group), packs.response(conversation)])
            start = len(whole) - replies[conversation]
            header = self.split.text.header
            end = start - len(header)  # where the header begins, if one stands before the reply
            before = whole[:end] if end >= 0 and np.array_equal(whole[end:start], header) else whole[:start]
            return {
                "row_id": int(packs.row_ids[group]),
                "source_id": int(packs.source_ids[group]),
                "split": self.split.name,
                "conversation": int(conversation - first[group]),
                "tokens": int(conversations[conversation]),
                "reply_tokens": int(replies[conversation]),
                "longest_reply": int(longest[group]),
                "shortest_reply": int(shortest[group]),
                "prompt_ids": before[-EXCERPT_TOKENS:].copy(),
                "reply_ids": whole[start : start + EXCERPT_TOKENS].copy(),
            }

        def describe_shortest_of(group: int) -> Figures:
            members = replies[first[group] : first[group] + packs.num_responses[group]]
            return describe(int(first[group] + members.argmin()))

        rows = packs.row_ids[packs.group_of]
        self.kinds["longest"].offer(conversations, rows, describe)
        self.kinds["shortest_reply"].offer(-replies, rows, describe)
        apart = np.where(longest > shortest, longest / shortest, -np.inf)  # equal lengths do not differ at all
        self.kinds["longest_ratio"].offer(apart, packs.row_ids, describe_shortest_of)

    @staticmethod
    def figures(parts: Sequence["Extremes"], text: Text) -> dict[str, list[Figures]]:
        """Ten rows of each kind over all splits, with the end of what came before the reply and its beginning."""
        return {
            kind: [
                {
                    **{key: value for key, value in entry.items() if not key.endswith("_ids")},
                    "before_reply": text.excerpt(entry["prompt_ids"]),
                    "reply": text.excerpt(entry["reply_ids"]),
                }
                for entry in _Extreme.best([part.kinds[kind] for part in parts])
            ]
            for kind in KINDS
        }
