"""What is given to be scored, as groups of conversations: by the rules that rows of a file are read by."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rmcli.errors import Skip
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.beside import is_given
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.known import NAMED

_ANSWERS = ("response", "responses")  # what `messages` ends with already: who gives both means another conversation


def unlabelled(
    row: Mapping[str, Any], responses: Any, where: str, contract: Contract, text_cells: bool = False
) -> PreferenceGroup:
    """Answers of which nothing is known: the canonical schema's, all of one rank and then without it.

    So whatever that schema reads beside the answers is read here too, and what it refuses is refused. Raises Skip.
    """
    if not isinstance(responses, Sequence) or isinstance(responses, str) or not responses:
        raise Skip("wrong_type")
    several = list(responses) if len(responses) > 1 else [*responses, *responses]
    ours = {column: value for column, value in row.items() if column != "response"}
    equal = {**ours, "responses": several, "ranks": [1] * len(several)}
    group = apply(NAMED["canonical"], equal, where, best_first=False, contract=contract, text_cells=text_cells)
    return replace(group, conversations=group.conversations[: len(responses)], comparisons=())


def whole(row: Mapping[str, Any], where: str, contract: Contract, text_cells: bool = False) -> PreferenceGroup:
    """The conversation in `messages`, with what stands beside it. Raises Skip."""
    if not isinstance(row["messages"], list | tuple):
        raise Skip("wrong_type")
    for column in _ANSWERS:
        if is_given(row.get(column)):
            raise Skip(f"unread_column {column}")
    beside = {column: value for column, value in row.items() if column not in ("messages", "prompt")}
    return unlabelled(beside, [row["messages"]], where, contract, text_cells)


def conversation(given: Any, contract: Contract) -> PreferenceGroup | str:
    """One conversation as Python has it, or why it cannot be scored.

    `given`: a list of messages, or a dict of `messages`, or of `prompt` and `response`, with `system`, `history`,
    `tools` and `chat_template_kwargs` beside them.
    """
    row = given if isinstance(given, Mapping) else {"messages": given}
    try:
        _check_names(row)
        if "messages" in row:
            return whole(row, "", contract)
        if row.get("response") is None:
            raise Skip("missing_column messages")
        return unlabelled(row, [row["response"]], "", contract)
    except Skip as skip:
        return skip.reason


def answer(prompt: Any, response: Any, contract: Contract) -> PreferenceGroup | str:
    """A prompt and one answer to it, each a text or messages.

    `prompt` may also be a dict of `messages` and what stands beside them. A prompt of None is none: `response` is the
    whole conversation.
    """
    row: Mapping[str, Any] = {"prompt": prompt, "response": response}
    if isinstance(prompt, Mapping):
        beside = {name: value for name, value in prompt.items() if name not in ("messages", "response")}
        row = {**beside, "prompt": prompt.get("messages", prompt.get("prompt")), "response": response}
    return conversation(row, contract) if response is not None else "wrong_type"


def _check_names(row: Mapping[Any, Any]) -> None:
    """JSON has names of text alone; what reads rows relies on it."""
    messages = row.get("messages")
    for value in (row, *(messages if isinstance(messages, list | tuple) else ())):
        if isinstance(value, Mapping) and not all(isinstance(name, str) for name in value):
            raise Skip("wrong_type")
