"""Conversations in tokens: each cut for itself, what several begin with found, complete ids checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmcli.errors import RmcliError
from rmcli.records import Comparison, PreferenceGroup, TokenGroup
from rmcli.tokens.encode import Encoder, common_prefix_length, is_ordered

NO_REWARD_TOKEN = "no_reward_token"  # complete ids that do not end where a score is read
_EMPTY = np.empty(0, dtype=np.int32)


def encode_apart(encoder: Encoder, groups: Sequence[PreferenceGroup]) -> list[list[TokenGroup | str]]:
    """Per group and conversation its tokens, cut as when it stands alone; or why it cannot be scored."""
    alone = [_alone(group, index) for group in groups for index in range(len(group.conversations))]
    sides = iter(encoder.encode(alone))
    return [[next(sides) for _ in group.conversations] for group in groups]


def _alone(group: PreferenceGroup, index: int) -> PreferenceGroup:
    """The group with one of its conversations alone."""
    return PreferenceGroup((group.conversations[index],), group.weight, (), group.template_arguments)


def share(sides: Sequence[TokenGroup], comparisons: tuple[Comparison, ...] = ()) -> TokenGroup:
    """Conversations that stand alone as one group: what they begin with in common is its prefix."""
    ids = [np.concatenate([side.prefix, side.responses[0]]) for side in sides]
    shared = common_prefix_length(ids) if len(ids) > 1 else 0
    return TokenGroup(
        prefix=ids[0][:shared] if shared else _EMPTY,
        responses=tuple(one[shared:] for one in ids),
        truncated=any(side.truncated for side in sides),
        noted=tuple(sorted({name for side in sides for name in side.noted})),
        comparisons=comparisons,
        ordered=is_ordered(comparisons, len(ids)),
    )


def written_alike(
    groups: Sequence[PreferenceGroup], sides: Sequence[Sequence[TokenGroup | str]]
) -> RmcliError | None:
    """What to say where many different conversations became the same tokens.

    Cut conversations may be alike, and so may those that differ in white space, which templates trim.
    """
    talks = [talk for group in groups for talk in group.conversations]
    whole = [
        (talk, side.responses[0])
        for talk, side in zip(talks, (side for of_group in sides for side in of_group), strict=True)
        if isinstance(side, TokenGroup) and not side.truncated
    ]
    if len(whole) < 2 or not all(np.array_equal(ids, whole[0][1]) for _, ids in whole):
        return None
    different = {repr([(message["role"], message["content"].split()) for message in talk]) for talk, _ in whole}
    if len(different) < 2:
        return None
    return RmcliError(
        f"the chat template writes {len(different)} different conversations as the same {len(whole[0][1])} "
        "tokens: all of one score",
        "it is not the template the model was trained with; give the model's own: chat_template.jinja",
    )


def complete(encoder: Encoder, given: Any) -> TokenGroup | str:
    """Token ids of a whole conversation up to its reward position, as they are; or why they cannot be scored."""
    reward = encoder.reward
    ids = _as_ids(given)
    if ids is None:
        return "wrong_type"
    if not len(ids):
        return "empty_conversation"
    if ids.min() < 0 or ids.max() >= reward.num_embedding_rows:
        return "token_without_row"
    if len(ids) > encoder.max_length:
        return "overlong"  # where to cut, only a conversation tells
    if reward.mode != "last" and ids[-1] != reward.reward_token_id:
        return NO_REWARD_TOKEN
    if reward.mode != "last" and len(ids) == 1:
        return "empty_conversation"  # the reward token alone
    if reward.stands_within(ids):
        return "reward_token_in_text"
    return TokenGroup(_EMPTY, (ids.astype(np.int32),), comparisons=())


def _as_ids(given: Any) -> np.ndarray | None:
    """(tokens,) whole numbers of a list, an array or a tensor, wherever it lies; None where it is no such thing."""
    try:
        listed = given.tolist() if hasattr(given, "tolist") else given
        array = np.asarray(listed)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    if array.ndim == 1 and any(isinstance(one, bool | np.bool_) for one in listed):
        return None  # among numbers numpy takes True for 1
    if array.shape == (0,):
        return array.astype(np.int64)
    return array if array.ndim == 1 and array.dtype.kind in "iu" else None
