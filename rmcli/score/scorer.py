"""Conversations to scores: each is cut for itself, and what the answers of a line share is computed once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rmcli.config.sections import Config
from rmcli.errors import RmcliError
from rmcli.model import forward
from rmcli.model.batch import build_batch
from rmcli.packs import pack
from rmcli.records import BatchKind, Conversation, PreferenceGroup, TokenGroup
from rmcli.tokens.encode import Encoder, common_prefix_length, is_ordered

_EMPTY = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Scored:
    """The tokens of a line and the score of each of its conversations, in the line's order."""

    tokens: TokenGroup
    scores: list[float]


@dataclass(frozen=True)
class Scorer:
    """A model ready to score: `kind` is how it runs conversations."""

    network: Any
    encoder: Encoder
    config: Config
    kind: BatchKind

    def score(self, groups: Sequence[PreferenceGroup], advance: Callable[[int], None]) -> list[Scored | str]:
        """Per group its scores, or why it has none; `advance` is told of groups that are done.

        A conversation's score is that of its own tokens: it depends on no other of its group or of the window.
        """
        encoded = encode_apart(self.encoder, groups)
        at = [index for index, entry in enumerate(encoded) if isinstance(entry, TokenGroup)]
        advance(len(groups) - len(at))
        token_groups = [entry for entry in encoded if isinstance(entry, TokenGroup)]
        scores = dict(zip(at, self._run(token_groups, advance), strict=True))
        return [Scored(e, scores[i]) if isinstance(e, TokenGroup) else e for i, e in enumerate(encoded)]

    @torch.no_grad()
    def _run(self, groups: list[TokenGroup], advance: Callable[[int], None]) -> list[list[float]]:
        """Scores of each group's conversations. Answers that are alike are run once, and have one score.

        A group that is larger than a pack is run in parts.
        """
        different = [list({response.tobytes(): response for response in group.responses}) for group in groups]
        results = self._run_different([_only_different(group) for group in groups], advance)
        return [
            [values[keys.index(response.tobytes())] for response in group.responses]
            for group, keys, values in zip(groups, different, results, strict=True)
        ]

    def _run_different(self, groups: list[TokenGroup], advance: Callable[[int], None]) -> list[list[float]]:
        capacity = self.config.data.max_packed_length
        parts = [(index, part) for index, group in enumerate(groups) for part in _parts(group, capacity)]
        sizes = [part.num_tokens for _, part in parts]
        values: list[list[float]] = [[] for _ in parts]
        parts_left = np.bincount([index for index, _ in parts], minlength=len(groups))
        for members in pack.best_fit_decreasing(sizes, max([capacity, *sizes])):
            chunk = [parts[member][1] for member in members]
            found: list[float] = []
            for together in [[part] for part in chunk] if self.kind == "padded" else [chunk]:
                batch = build_batch(self.kind, together, self.encoder.reward.pad_token_id, self.network.device)
                found += forward.scores(self.network, batch, self.config.model.dtype).tolist()
            for member in members:
                count = len(parts[member][1].responses)
                values[member], found = found[:count], found[count:]
                parts_left[parts[member][0]] -= 1
                advance(int(parts_left[parts[member][0]] == 0))
        results: list[list[float]] = [[] for _ in groups]
        for (index, _), part_values in zip(parts, values, strict=True):
            results[index] += part_values
        return results


def _only_different(group: TokenGroup) -> TokenGroup:
    return replace(group, responses=tuple({response.tobytes(): response for response in group.responses}.values()))


def _parts(group: TokenGroup, capacity: int) -> Iterator[TokenGroup]:
    """The group as groups of at most `capacity` tokens, where more than one response fits; each with the prefix."""
    first, size = 0, len(group.prefix)
    for number, response in enumerate(group.responses):
        if number > first and size + len(response) > capacity:
            yield replace(group, responses=group.responses[first:number])
            first, size = number, len(group.prefix)
        size += len(response)
    yield replace(group, responses=group.responses[first:])


def encode_apart(encoder: Encoder, groups: Sequence[PreferenceGroup]) -> list[TokenGroup | str]:
    """Per group its tokens, each conversation cut as it is when it stands alone; or why one of them cannot be scored.

    Raises RmcliError when many different conversations became the same tokens.
    """
    alone = [replace(group, conversations=(talk,)) for group in groups for talk in group.conversations]
    sides = encoder.encode(alone)
    _refuse_alike([group.conversations[0] for group in alone], sides)
    left = iter(sides)
    return [_together(group, [next(left) for _ in group.conversations]) for group in groups]


def _together(group: PreferenceGroup, sides: Sequence[TokenGroup | str]) -> TokenGroup | str:
    problem = next((side for side in sides if isinstance(side, str)), None)
    if problem is not None:
        return problem
    whole = [side for side in sides if isinstance(side, TokenGroup)]
    ids = [np.concatenate([side.prefix, side.responses[0]]) for side in whole]
    shared = common_prefix_length(ids) if len(ids) > 1 else 0
    return TokenGroup(
        prefix=ids[0][:shared] if shared else _EMPTY,
        responses=tuple(one[shared:] for one in ids),
        truncated=any(side.truncated for side in whole),
        noted=tuple(sorted({name for side in whole for name in side.noted})),
        comparisons=group.comparisons,
        ordered=is_ordered(group.comparisons, len(ids)),
    )


def _refuse_alike(talks: Sequence[Conversation], sides: Sequence[TokenGroup | str]) -> None:
    """Cut conversations may be alike, and so may those that differ in white space, which templates trim."""
    whole = [
        (talk, side.responses[0])
        for talk, side in zip(talks, sides, strict=True)
        if isinstance(side, TokenGroup) and not side.truncated
    ]
    if len(whole) < 2 or not all(np.array_equal(ids, whole[0][1]) for _, ids in whole):
        return
    different = {repr([(message["role"], message["content"].split()) for message in talk]) for talk, _ in whole}
    if len(different) > 1:
        raise RmcliError(
            f"the chat template writes {len(different)} different conversations as the same {len(whole[0][1])} "
            "tokens: all of one score",
            "it is not the template the model was trained with; give the model's own: chat_template.jinja",
        )
