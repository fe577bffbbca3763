"""The values that travel between the stages. All frozen, none of them knows torch.

row -map_fn-> PreferenceGroup -encode-> TokenGroup -pack-> Pack
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import numpy as np


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


Conversation = tuple[Message, ...]

# How conversations are laid into forwards. packed: prompts shared; single: one conversation per forward;
# padded: model.use_varlen_attn = false, the reference.
BatchKind = Literal["packed", "single", "padded"]


def as_dicts(conversation: Conversation) -> list[dict[str, str]]:
    """The conversation as chat templates take it."""
    return [{"role": message["role"], "content": message["content"]} for message in conversation]


class Comparison(NamedTuple):
    """Conversation `first` of a group against `second`.

    `label`: probability that the first is better; 1 is a plain preference, 1/2 a tie. `margin`: how much better it
    is, in the data set's own units, 0 where it is not known.
    """

    first: int
    second: int
    label: float = 1.0
    margin: float = 0.0

    @property
    def is_tie(self) -> bool:
        return self.label == 0.5


PAIR = (Comparison(0, 1),)  # the first of two is better


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """K whole conversations about one prompt and what is known of them.

    K = 2 with PAIR is a plain pair: conversations[0] is chosen, conversations[1] is rejected. K = 1 is a
    conversation that is only scored.
    """

    conversations: tuple[Conversation, ...]
    weight: float = 1.0
    comparisons: tuple[Comparison, ...] = PAIR


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A PreferenceGroup in tokens: one shared prefix and K responses.

    Conversation j is `prefix + responses[j]`; its reward position is its last token.
    `prefix`: (P,) int32; `responses`: K arrays (R_j,) int32 with R_j >= 1. `ordered`: the responses stand in strict
    order, best first, and no comparison says otherwise (every plain pair is ordered). `noted`: which of NOTED
    in tokens/encode.py hold for it; they are counted, not stored.
    """

    prefix: np.ndarray
    responses: tuple[np.ndarray, ...]
    row_id: int = 0
    source_id: int = 0
    weight: float = 1.0
    truncated: bool = False
    comparisons: tuple[Comparison, ...] = PAIR
    ordered: bool = True
    noted: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that are stored and computed: the prefix once."""
        return len(self.prefix) + sum(len(response) for response in self.responses)

    @property
    def num_unshared_tokens(self) -> int:
        """Tokens of the K conversations written out one after the other: the prefix K times."""
        return len(self.prefix) * len(self.responses) + sum(len(response) for response in self.responses)


@dataclass(frozen=True, slots=True)
class Pack:
    """Groups that are run in one forward: P1 C1 R1 P2 C2 R2 ..."""

    groups: tuple[TokenGroup, ...]

    @property
    def num_tokens(self) -> int:
        return sum(group.num_tokens for group in self.groups)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One input row and where it stands. `value` is None when the row could not be read; `problem` says why."""

    source_id: int
    file: str
    line: int
    value: dict | None
    problem: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """A row left out: why, where, and how its text begins.

    `detail`: what the map function ran into. `repeats`: `file:line` of the row that a duplicate repeats.
    """

    reason: str
    file: str
    line: int
    text: str
    detail: str | None = None
    repeats: str | None = None
