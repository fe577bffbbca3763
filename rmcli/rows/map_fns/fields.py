"""Reading the fields of a row, strictly: what is not of the expected kind leaves the row out with a reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from rmcli.errors import Skip
from rmcli.records import CALLS, OWN_KEYS, Conversation, Message, PreferenceGroup

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MapFunction:
    """A function from a row to a preference group, and what is known of its data set.

    `columns`: what a row must have. `reads`: columns that it reads where they are there. `passes_over`: columns that
    are known to be of no use. Any other one is named (`Contract`). A user's own function without `columns` is
    watched: what it looks at is what it reads. `numbers`: columns of numbers, which the cells of a CSV spell out.

    `default_source`: the Hub data set that is read when none is named, `default_split` its training split there.
    `rows_key`: consecutive rows of one file with an equal key (not None) go to the function together, as a list.
    `schema`: for `recognise`, a test for each column that tells this data set from others; empty means that it is
    never guessed.
    """

    function: Callable[..., Any]
    columns: tuple[str, ...]
    default_source: str | None
    rows_key: Callable[[Row], object] | None = None
    description: str = ""
    default_split: str = "train"
    schema: Mapping[str, Callable[[Any], bool]] | None = None
    reads: tuple[str, ...] = ()
    passes_over: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @cached_property
    def known_columns(self) -> frozenset[str]:
        return frozenset((*self.columns, *self.reads, *self.passes_over))


LARGEST = 3.4e38  # of float32, in which numbers are stored


def text(value: Any, name: str = "") -> str:
    """The value, if it is text that can be encoded. Raises Skip; `name` is what it is called there."""
    if not isinstance(value, str):
        raise Skip("wrong_type", f"{name} is {kind_of(value)}, not text" if name else None)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Skip("bad_json") from None  # a lone surrogate, as JSON within a field can hold
    return value


def kind_of(value: Any) -> str:
    """What a person calls it: null, a list, an object, or its Python type."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


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


_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def content(value: Any, name: str = "content") -> str:
    """What a message says: text, or a list of parts of text, which are joined.

    Raises Skip: unsupported_content for a part that is no text, such as an image.
    """
    if not isinstance(value, list | tuple):
        return text(value, name)
    said = []
    for part in value:
        if isinstance(part, str):
            said.append(text(part))
        elif isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            said.append(text(part["text"]))
        else:
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise Skip("unsupported_content", f"{name} has a part that is {kind or kind_of(part)}, not text")
    return "".join(said)


def as_messages(value: Any, role: str | None = None, name: str = "messages") -> Conversation:
    """A message list, checked; a string becomes one message of `role`. A system message of null is left out.

    Further keys of a message that are not null are kept: chat templates may read them. Raises Skip: wrong_type,
    unsupported_content; `name` is what the list is called in its detail.
    """
    if isinstance(value, str) and role is not None:
        return (Message(role=role, content=text(value)),)
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type", f"{name} is {kind_of(value)}")
    messages = []
    for number, item in enumerate(value, 1):
        where = f"message {number} of {name}"
        if not isinstance(item, Mapping):
            raise Skip("wrong_type", f"{where} is {kind_of(item)}")
        if "content" not in item and any(map(item.get, CALLS)):
            item = {**item, "content": None}
        for key in ("role", "content"):
            if key not in item:
                raise Skip("wrong_type", f"{where} has no {key}")
        if item["role"] == "system" and item["content"] is None:
            continue
        messages.append(message(item["role"], item["content"], item, ("role", "content"), where))
    return tuple(messages)


def message(role: Any, said: Any, item: Row, own_keys: Sequence[str], where: str) -> Message:
    """One message, with those keys of `item` that are not its own and not null. Raises Skip.

    Beside a call the content may be null, as OpenAI's format has it.
    """
    if said is None and any(item.get(key) for key in CALLS):
        said = ""
    whole = Message(role=text(role, f"the role of {where}"), content=content(said, f"the content of {where}"))
    if len(item) > len(own_keys):
        more = {
            key: value
            for key, value in item.items()
            if key not in own_keys and key not in OWN_KEYS and _is_kept(key, value)
        }
        return cast(Message, {**whole, **more})
    return whole


def _is_kept(key: str, value: Any) -> bool:
    """Null says nothing; nor does an empty list of calls, which data sets write beside plain answers."""
    return value is not None and (key not in (*CALLS, "tool_call_id") or bool(value))


def user(said: Any) -> Conversation:
    """One user turn."""
    return (Message(role="user", content=text(said)),)


def assistant(said: Any) -> Conversation:
    """One assistant turn."""
    return (Message(role="assistant", content=text(said)),)


def with_prompt(prompt: Conversation, reply: Any) -> Conversation:
    """The whole conversation. `reply` is text or messages, which may begin with the prompt already."""
    messages = as_messages(reply, "assistant")
    includes_prompt = bool(prompt) and messages[: len(prompt)] == prompt
    return messages if includes_prompt else (*prompt, *messages)


def pair(prompt: Conversation, chosen: Any, rejected: Any) -> PreferenceGroup:
    """Two replies to one prompt, as text; the first is better."""
    named = ((chosen, "chosen"), (rejected, "rejected"))
    sides = (Message(role="assistant", content=text(said, name)) for said, name in named)
    return PreferenceGroup(tuple((*prompt, side) for side in sides))
