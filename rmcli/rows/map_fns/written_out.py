"""Conversations that were written out as one text: transcripts, and message lists as JSON or as Python prints them.

Taken as they stand, a whole talk would be one turn. Where a text can be read in one way only it is read back as
messages; where it cannot, the row is left out by name. Message lists stay as they are, whatever their texts hold.
"""

import ast
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rmcli.errors import Skip
from rmcli.rows.map_fns.fields import Row

_LABEL = re.compile(r"(?:^|\n)[ \t]*(Human|User|HUMAN|USER|Assistant|ASSISTANT):")
_USER_FIRST = re.compile(r"\s*(?:Human|User|HUMAN|USER):")
_ASSISTANT_FIRST = re.compile(r"\s*(?:Assistant|ASSISTANT):")
# A prompt that ends where a reply would begin was rendered by another tool's template.
_ENDS_IN_HEADER = re.compile(
    r"(?:\n[ \t]*(?:Assistant|ASSISTANT|### ?(?:Response|Assistant)):|\sASSISTANT:|\[/INST\]|<\|assistant\|>"
    r"|<\|im_start\|>assistant|<start_of_turn>model|<\|start_header_id\|>assistant<\|end_header_id\|>)\s*$"
)
_SERIALISED = re.compile(r"\s*(?:array\()?\[?\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words
_REPEATED = 39  # characters of a prompt that all answers begin with by no chance

Messages = list[dict[str, Any]]


def read_back(row: Row) -> Row:
    """A canonical row with its written-out texts as message lists; the row itself where there are none.

    Raises Skip: transcript_in_text for a talk that can be read in more ways than one, unreadable_messages for what
    begins like a message list and is none, prompt_in_reply where every answer repeats the whole prompt.
    """
    fields = [field for field in ("prompt", "chosen", "rejected") if isinstance(row.get(field), str)]
    answers = row.get("responses") if isinstance(row.get("responses"), list | tuple) else None
    texts = {field: row[field] for field in fields}
    found: dict[str, Any] = {}
    if (prompt := _read_prompt(texts.pop("prompt", ""))) is not None:
        found["prompt"] = prompt
    labelled = prompt is not None and not _SERIALISED.match(row["prompt"])
    for field, text in texts.items():
        if (messages := _read_answer(text, labelled)) is not None:
            found[field] = messages
    if answers is not None:
        read = [_read_answer(answer, labelled) if isinstance(answer, str) else None for answer in answers]
        if any(messages is not None for messages in read):
            pairs = zip(read, answers, strict=True)
            found["responses"] = [answer if messages is None else messages for messages, answer in pairs]
    if not found:
        _check_prompt_is_not_repeated(row, answers)
        return row
    whole = {**row, **found}
    _check_answers_go_on(whole)
    return whole


def _read_prompt(text: str) -> Messages | None:
    messages = _serialised(text)
    if messages is not None:
        return messages
    if _USER_FIRST.match(text) and len(_LABEL.findall(text)) > 1:
        turns = _turns(text)
        if turns[-1]["role"] == "user":
            return turns
        if not turns[-1]["content"]:
            return turns[:-1]
        raise Skip("transcript_in_text")  # is the last one a reply that goes on, or one that is over?
    if _ENDS_IN_HEADER.search(text[-80:]):
        raise Skip("transcript_in_text")
    return None


def _read_answer(text: str, labelled: bool) -> Messages | None:
    """A whole talk that ends in a reply; after a transcript what goes on with it, with a label or without."""
    messages = _serialised(text)
    if messages is not None:
        return messages
    if _USER_FIRST.match(text) and len(_LABEL.findall(text)) > 1:
        turns = _turns(text)
        if turns[-1]["role"] == "assistant":
            return turns
        raise Skip("transcript_in_text")
    if labelled and _ASSISTANT_FIRST.match(text) and len(_LABEL.findall(text)) == 1:
        return _turns(text)
    return [{"role": "assistant", "content": text.strip()}] if labelled else None


def _turns(text: str) -> Messages:
    """The turns of a transcript that begins with a label. Raises Skip unless speakers take turns."""
    _, *parts = _LABEL.split("\n" + text.lstrip())
    roles = ["assistant" if label.lower() == "assistant" else "user" for label in parts[::2]]
    if any(one == other for one, other in pairwise(roles)):
        raise Skip("transcript_in_text")
    contents = [content.strip() for content in parts[1::2]]
    if not all(contents[:-1]):
        raise Skip("transcript_in_text")
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _serialised(text: str) -> Messages | None:
    """The messages of a text that is nothing but a message list, or one message. Raises Skip for a broken one."""
    if not _SERIALISED.match(text):
        return None
    value = _parsed(text)
    items = value if isinstance(value, list) else [value]
    messages = [_message(item) for item in items]
    if any(message is None for message in messages):
        raise Skip("unreadable_messages")
    return [message for message in messages if message is not None]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise Skip("unreadable_messages") from None


def _message(item: Any) -> dict[str, Any] | None:
    if not isinstance(item, Mapping):
        return None
    if "role" in item and "content" in item:
        return dict(item)
    if isinstance(item.get("from"), str) and "value" in item:
        return {"role": _ROLES.get(item["from"], item["from"]), "content": item["value"]}
    return None


def _check_answers_go_on(row: Row) -> None:
    """A whole talk as an answer must begin with its prompt, else both would be put one after the other."""
    prompt = row.get("prompt")
    if prompt is None:
        return
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    answers = row.get("responses") or [row.get("chosen"), row.get("rejected")]
    for answer in answers:
        if not (isinstance(answer, list) and answer and _said(answer[0])[0] in ("user", "system")):
            continue
        if [*map(_said, answer[: len(prompt)])] != [*map(_said, prompt)]:
            raise Skip("transcript_in_text")


def _said(message: Any) -> tuple[Any, Any]:
    return (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, message)


def _check_prompt_is_not_repeated(row: Row, answers: Any) -> None:
    prompt = row.get("prompt")
    given = answers if answers is not None else [row.get("chosen"), row.get("rejected")]
    if not isinstance(prompt, str) or not given or len(start := prompt.strip()) < _REPEATED:
        return
    if all(isinstance(answer, str) and answer.lstrip().startswith(start) for answer in given):
        raise Skip("prompt_in_reply")
