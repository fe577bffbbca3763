"""Reading the fields of a row, strictly: what is not of the expected kind leaves the row out with a reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmcli.errors import Skip
from rmcli.records import Conversation, Message, PreferenceGroup

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MapFunction:
    """A function from a row to a preference group, and what is known of its data set.

    `columns`: what it reads. `default_source`: the Hub data set that is read when none is named, `default_split` its
    training split there. `rows_key`: consecutive rows of one file with an equal key (not None) go to the function
    together, as a list. `schema`: for `recognise`, a test for each column that tells this data set from others; empty
    means that it is never guessed.
    """

    function: Callable[..., Any]
    columns: tuple[str, ...]
    default_source: str | None
    rows_key: Callable[[Row], object] | None = None
    description: str = ""
    default_split: str = "train"
    schema: Mapping[str, Callable[[Any], bool]] | None = None


LARGEST = 3.4e38  # of float32, in which numbers are stored


def text(value: Any) -> str:
    """The value, if it is text that can be encoded. Raises Skip."""
    if not isinstance(value, str):
        raise Skip("wrong_type")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Skip("bad_json") from None  # a lone surrogate, as JSON within a field can hold
    return value


def number(value: Any, reason: str) -> float:
    """The value as a float that float32 can hold; true and false are no numbers. Raises Skip(reason)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        raise Skip(reason)
    return float(value)


def choice(value: Any, allowed: Sequence[int]) -> int:
    """The value, if it is one of these whole numbers. Raises Skip("wrong_type")."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in allowed:
        raise Skip("wrong_type")
    return int(value)


def as_messages(value: Any, role: str | None = None) -> Conversation:
    """A message list, checked; a string becomes one message of `role`. Raises Skip("wrong_type")."""
    if isinstance(value, str) and role is not None:
        return (Message(role=role, content=text(value)),)
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type")
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            raise Skip("wrong_type")
        if any(item.get(key) for key in ("tool_calls", "function_call", "tool_call_id")):
            raise Skip("unsupported_tool_call")  # a template would write it; we would lose it
        messages.append(Message(role=text(item["role"]), content=text(item["content"])))
    return tuple(messages)


def user(content: Any) -> Conversation:
    """One user turn."""
    return (Message(role="user", content=text(content)),)


def assistant(content: Any) -> Conversation:
    """One assistant turn."""
    return (Message(role="assistant", content=text(content)),)


def with_prompt(prompt: Conversation, reply: Any) -> Conversation:
    """The whole conversation. `reply` is text or messages, which may begin with the prompt already."""
    messages = as_messages(reply, "assistant")
    includes_prompt = bool(prompt) and messages[: len(prompt)] == prompt
    return messages if includes_prompt else (*prompt, *messages)


def pair(prompt: Conversation, chosen: Any, rejected: Any) -> PreferenceGroup:
    """Two replies to one prompt, as text; the first is better."""
    return PreferenceGroup(((*prompt, *assistant(chosen)), (*prompt, *assistant(rejected))))
