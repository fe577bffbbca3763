"""Packed rows as flat arrays over its groups, conversations and comparisons; hashes of them by token ids.

G groups, C conversations (all responses of all groups), M comparisons, T tokens.
"""

from dataclasses import dataclass

import numpy as np

from rmcli.audit.figures.near_duplicates import scramble


@dataclass(frozen=True)
class FlatPacks:
    """One or more packs, one after the other.

    `ids` (T,), and where in them each group and conversation stands; a prompt is the shared prefix.
    """

    ids: np.ndarray
    starts: np.ndarray  # (G,)
    prompt_lengths: np.ndarray  # (G,)
    num_responses: np.ndarray  # (G,)
    row_ids: np.ndarray  # (G,)
    source_ids: np.ndarray  # (G,)
    group_of: np.ndarray  # (C,)
    response_starts: np.ndarray  # (C,) in ids
    response_lengths: np.ndarray  # (C,)
    compared_group: np.ndarray  # (M,)
    better: np.ndarray  # (M,) conversation
    worse: np.ndarray  # (M,) conversation
    tied: np.ndarray  # (M,) bool: neither is better

    @staticmethod
    def from_columns(columns: dict[str, np.ndarray]) -> "FlatPacks":
        """From the columns of stored rows, see docs/format.md."""
        num_responses = columns["num_responses"].astype(np.int64)
        prompt_lengths = columns["prefix_lengths"].astype(np.int64)
        lengths = columns["response_lengths"].astype(np.int64)
        group_of = np.repeat(np.arange(len(num_responses)), num_responses)
        # The layout is P1 C1 R1 P2 C2 R2: what lies before a response is all prompts up to its own, all responses
        # before it.
        prompts_before = np.cumsum(prompt_lengths)[group_of]
        response_starts = prompts_before + np.cumsum(lengths) - lengths
        first = np.cumsum(num_responses) - num_responses
        compared_group = np.repeat(np.arange(len(num_responses)), columns["num_comparisons"])
        one, other = (columns[f"comparison_{name}"] + first[compared_group] for name in ("first", "second"))
        labels = columns["comparison_labels"]
        return FlatPacks(
            ids=columns["input_ids"],
            starts=response_starts[first] - prompt_lengths,
            prompt_lengths=prompt_lengths,
            num_responses=num_responses,
            row_ids=columns["row_ids"],
            source_ids=columns["source_ids"],
            group_of=group_of,
            response_starts=response_starts,
            response_lengths=lengths,
            compared_group=compared_group,
            better=np.where(labels >= 0.5, one, other),
            worse=np.where(labels >= 0.5, other, one),
            tied=labels == 0.5,
        )

    @property
    def conversation_lengths(self) -> np.ndarray:
        """(C,) tokens of prompt and response."""
        return self.prompt_lengths[self.group_of] + self.response_lengths

    def prompt(self, group: int) -> np.ndarray:
        return self.ids[self.starts[group] : self.starts[group] + self.prompt_lengths[group]]

    def response(self, conversation: int) -> np.ndarray:
        start = self.response_starts[conversation]
        return self.ids[start : start + self.response_lengths[conversation]]

    def conversation_hashes(self) -> np.ndarray:
        """(C,) uint64, equal for equal token ids: a sum of position-dependent products, modulo 2**64."""
        first = np.cumsum(self.num_responses) - self.num_responses
        lengths = np.insert(self.response_lengths, first, self.prompt_lengths)
        own = self.response_starts - self.prompt_lengths[self.group_of]  # where position 0 would be
        position = np.arange(len(self.ids)) - np.repeat(np.insert(own, first, self.starts), lengths)
        products = scramble(position) * scramble(self.ids.astype(np.uint64) + np.uint64(1 << 40))
        before = np.concatenate([[np.uint64(0)], np.cumsum(products, dtype=np.uint64)])
        prompts = before[self.starts + self.prompt_lengths] - before[self.starts]
        responses = before[self.response_starts + self.response_lengths] - before[self.response_starts]
        return scramble(prompts[self.group_of] + responses + scramble(self.conversation_lengths))

    def group_hashes(self, conversations: np.ndarray) -> np.ndarray:
        """(G,) uint64 of the `conversation_hashes` in their order."""
        first = np.cumsum(self.num_responses) - self.num_responses
        place = np.arange(len(conversations)) - np.repeat(first, self.num_responses)
        return scramble(np.add.reduceat(scramble(place) * conversations, first))

    def reply_lengths(self, header: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C,) tokens after the last assistant header, and whether one was found; where not, after the prompt.

        `header`: the ids that the chat template writes before a reply; empty when it writes none.
        """
        if not len(header) or len(self.ids) < len(header):
            return self.response_lengths, np.zeros(len(self.group_of), dtype=bool)
        found = np.ones(len(self.ids) - len(header) + 1, dtype=bool)
        for offset, index in enumerate(header.tolist()):
            found &= self.ids[offset : offset + len(found)] == index
        ends = np.full(len(self.ids) + 1, -1, dtype=np.int64)
        ends[np.flatnonzero(found) + len(header)] = np.flatnonzero(found) + len(header)
        latest = np.maximum.accumulate(ends)  # at each place the end of the last header up to it
        in_response = latest[self.response_starts + self.response_lengths - 1]
        in_prompt = latest[(self.starts + self.prompt_lengths)[self.group_of]]
        own = in_response >= self.response_starts + len(header)
        shared = ~own & (in_prompt >= self.starts[self.group_of] + len(header))
        after_own = self.response_starts + self.response_lengths - in_response
        after_shared = (self.starts + self.prompt_lengths)[self.group_of] - in_prompt + self.response_lengths
        return np.where(own, after_own, np.where(shared, after_shared, self.response_lengths)), own | shared

    def endings(self, length: int) -> np.ndarray:
        """(C, length) the last ids of each conversation; -1 before a shorter one's start."""
        columns = []
        for back in range(1, length + 1):
            in_response = back <= self.response_lengths
            in_prompt = back - self.response_lengths
            at = np.where(
                in_response,
                self.response_starts + self.response_lengths - back,
                (self.starts + self.prompt_lengths)[self.group_of] - in_prompt,
            )
            inside = back <= self.conversation_lengths
            columns.append(np.where(inside, self.ids[np.where(inside, at, 0)], -1))
        return np.stack(columns[::-1], axis=1)

    def standing(self) -> np.ndarray:
        """(C,) comparisons won minus comparisons lost."""
        standing = np.zeros(len(self.group_of), dtype=np.int64)
        np.add.at(standing, self.better[~self.tied], 1)
        np.add.at(standing, self.worse[~self.tied], -1)
        return standing
