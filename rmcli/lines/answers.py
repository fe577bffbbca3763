"""Prompts and answers under the names that generators write them by, as a row of our own schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rmcli.errors import Skip
from rmcli.rows.map_fns.beside import is_given

# Several answers to one prompt: verl's; vLLM's and open-instruct's; TRL's; others'. The first that is there counts.
ANSWERS = ("responses", "outputs", "completions", "candidates")
ANSWER = ("response", "completion")  # one answer to a prompt


@dataclass(frozen=True)
class Answered:
    """The row with `prompt` and `responses`, and the columns that they were read from."""

    row: Mapping[str, Any]
    read: frozenset[str]


def answered(row: Mapping[str, Any], text_cells: bool) -> Answered | None:
    """The row as a prompt and its answers; None where it has no answers beside a prompt.

    The prompt is in `prompt`, or in `messages` that do not end with the assistant's: with it they are a conversation
    of their own. In a CSV (`text_cells`) answers are a JSON list. Raises Skip for answers that are no list.
    """
    column = next((name for name in ANSWERS if is_given(row.get(name)) or row.get(name) == []), None)
    if column is None or (column != "responses" and any(is_given(row.get(name)) for name in ("chosen", "response"))):
        return None
    asked = _asked(row)
    if asked is None:
        return None
    answers = _listed(row[column], text_cells)
    rest = {name: value for name, value in row.items() if name not in (column, asked, "messages")}
    ours = {**rest, "responses": [_as_answer(answer) for answer in answers]}
    if asked in row:
        ours["prompt"] = row[asked]
    return Answered(ours, frozenset((column, asked)))


def _asked(row: Mapping[str, Any]) -> str | None:
    """The column of the prompt; `prompt` too where there is none and the answers are whole conversations."""
    if not is_given(row.get("messages")):
        return "prompt"
    messages = row["messages"]
    ends = messages[-1] if isinstance(messages, list | tuple) else None
    is_whole = isinstance(ends, Mapping) and ends.get("role") == "assistant"
    return "messages" if isinstance(ends, Mapping) and not is_whole else None


def _listed(answers: Any, text_cells: bool) -> list[Any]:
    if isinstance(answers, str) and text_cells:
        try:
            answers = json.loads(answers)
        except (ValueError, RecursionError):
            raise Skip("bad_json", "the answers are text that is no JSON") from None
    if not isinstance(answers, list | tuple):
        raise Skip("wrong_type", "the answers are no list")
    return list(answers)


def _as_answer(answer: Any) -> Any:
    """A text or messages as they are; of an object the message it is, or the text or message that it holds."""
    if not isinstance(answer, Mapping):
        return answer
    if "role" in answer:
        return [dict(answer)]
    if isinstance(answer.get("text"), str):  # vLLM's CompletionOutput
        return answer["text"]
    if isinstance(answer.get("message"), Mapping):  # OpenAI's choice
        return [dict(answer["message"])]
    return answer
