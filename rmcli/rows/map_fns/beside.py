"""What belongs to a conversation and stands in columns beside it: system, history, tools, chat_template_kwargs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rmcli.errors import Skip
from rmcli.records import Conversation, Message, PreferenceGroup
from rmcli.rows.map_fns.fields import Row, as_messages, assistant, kind_of, text, user

BESIDE = ("system", "history", "tools", "chat_template_kwargs")
TOOLS = "tools"  # among a group's template arguments; the others come from chat_template_kwargs


def is_given(value: Any) -> bool:
    """Whether a cell holds something: null, a blank text and an empty list or object are nothing."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, list | tuple | Mapping) and not value)


def with_columns_beside(row: Row, group: PreferenceGroup) -> PreferenceGroup:
    """The group with the row's `system` message and earlier turns in front, and what its template gets beside them.

    `history`: messages, or [question, answer] for each turn. `tools`: a list, or JSON text of one.
    Raises Skip: wrong_type, bad_json, two_system_messages where a conversation has another one of its own.
    """
    if not any(is_given(row.get(name)) for name in BESIDE):
        return group
    system = row.get("system")
    opening: Conversation = ()
    if is_given(system):
        opening = (Message(role="system", content=text(system, "system")),)
    if is_given(row.get("history")):
        opening = joined(opening, _history(row["history"]))
    return replace(
        group,
        conversations=tuple(joined(opening, conversation) for conversation in group.conversations),
        template_arguments={**group.template_arguments, **template_arguments(row)},
    )


def joined(opening: Conversation, conversation: Conversation) -> Conversation:
    """The conversation after its opening, with one system message in front. What is there already comes once.

    Raises Skip("two_system_messages") where both have one and they differ.
    """
    if not opening or conversation[: len(opening)] == opening:
        return conversation
    if opening[0]["role"] == "system" and conversation and conversation[0]["role"] == "system":
        if conversation[0] != opening[0]:
            raise Skip("two_system_messages", "the column and the conversation have different ones")
        return (*opening, *conversation[1:])
    if conversation and conversation[0]["role"] == "system":  # earlier turns come after it
        return (conversation[0], *opening, *conversation[1:])
    return (*opening, *conversation)


def template_arguments(row: Row) -> dict[str, Any]:
    """`tools` and the entries of `chat_template_kwargs` that are not null. Raises Skip."""
    arguments: dict[str, Any] = {}
    if is_given(row.get("chat_template_kwargs")):
        given = _parsed(row["chat_template_kwargs"], "chat_template_kwargs", lambda value: isinstance(value, Mapping))
        arguments |= {str(name): value for name, value in given.items() if value is not None}
    if is_given(row.get(TOOLS)):
        tools = _parsed(row[TOOLS], TOOLS, lambda value: isinstance(value, list | tuple))
        if not all(isinstance(tool, Mapping) for tool in tools):
            raise Skip("wrong_type", "an entry of tools is no object")
        if tools:
            arguments[TOOLS] = [dict(tool) for tool in tools]
    check_json(arguments)
    return arguments


def check_json(value: Any) -> None:
    """Raise Skip where a value from a data file is nothing that JSON has, or text that cannot be encoded."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except TypeError as error:
        raise Skip("wrong_type", str(error)) from None
    except (ValueError, RecursionError):
        raise Skip("bad_json") from None


def _parsed(value: Any, name: str, is_right: Callable[[Any], bool]) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Skip("bad_json", f"{name} is text that is no JSON") from None
    if not is_right(value):
        raise Skip("wrong_type", f"{name} is {kind_of(value)}")
    return value


def _history(value: Any) -> Conversation:
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type", f"history is {kind_of(value)}")
    if any(isinstance(turn, Mapping) for turn in value):
        return as_messages(value, name="history")
    turns: list[Message] = []
    for turn in value:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise Skip("wrong_type", "a turn of history is no [question, answer]")
        turns += (*user(turn[0]), *assistant(turn[1]))
    return tuple(turns)
