"""The values that travel between the stages. All frozen, none of them knows torch.

row -map_fn-> PreferenceGroup -encode-> TokenGroup -pack-> Pack
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np


class Message(TypedDict):
    """One turn of a conversation. It may have further keys, such as `reasoning_content`, for the chat template."""

    role: str
    content: str


Conversation = tuple[Message, ...]

# How conversations are laid into forwards. packed: prompts shared; single: one conversation per forward;
# padded: model.use_varlen_attn = false, the reference.
BatchKind = Literal["packed", "single", "padded"]


OWN_KEYS = frozenset({"role", "content"})  # of every message; others are a chat template's


CALLS = ("tool_calls", "function_call")  # keys of a message that calls tools; its content may be empty


def as_dicts(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation as chat templates take it."""
    return [dict(message) for message in conversation]


def has_more(conversation: Conversation) -> bool:
    """Whether a message has keys beside role and content. Asked of every conversation, hence by counting."""
    return sum(map(len, conversation)) > 2 * len(conversation)


def more_of(message: Message) -> dict[str, Any]:
    """What a message has beside role and content."""
    return {} if len(message) == 2 else {key: value for key, value in message.items() if key not in OWN_KEYS}


def says_nothing(message: Message) -> bool:
    """Whether a message has neither text nor a call of a tool."""
    return not message["content"].strip() and not any(map(message.get, CALLS))


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

    @property
    def ends(self) -> tuple[int, int]:
        """The better and the worse one; of a tie, which has none, (second, first)."""
        return (self.first, self.second) if self.label > 0.5 else (self.second, self.first)


PAIR = (Comparison(0, 1),)  # the first of two is better


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """K whole conversations about one prompt and what is known of them.

    K = 2 with PAIR is a plain pair: conversations[0] is chosen, conversations[1] is rejected. K = 1 is a
    conversation that is only scored. `template_arguments`: what the chat template gets beside the messages: `tools`
    (a list), and names of its own such as `enable_thinking`.
    """

    conversations: tuple[Conversation, ...]
    weight: float = 1.0
    comparisons: tuple[Comparison, ...] = PAIR
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


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

    `detail`: the field it is about, or what the map function ran into; `raised_at`: where in a user's own function.
    `repeats`: `file:line` of the row that a duplicate repeats.
    """

    reason: str
    file: str
    line: int
    text: str
    detail: str | None = None
    repeats: str | None = None
    raised_at: str | None = None
