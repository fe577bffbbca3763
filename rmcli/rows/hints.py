"""What helps against a reason to reject rows: by the reason, and by how the file of the first such row begins."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from rmcli.errors import RmcliError
from rmcli.rows.files import TEXT_ENDINGS, open_bytes
from rmcli.rows.map_fns.known import NAMED
from rmcli.rows.readers import read_file

_HEAD = 2**16  # bytes of the file that are looked at
_FIT = "does --map-fn fit the data? --map-fn auto recognises it, rmcli map-fns lists what each one reads"
_ROLES = "roles are system, user, assistant and tool"
_LONGER = "raise data.max_length (-s data.max_length=N), or see data.overlong for what may be cut"
_HINTS = {
    "bad_json": "each line must be one JSON object in UTF-8, with no key twice",
    "bad_csv": 'each row needs as many cells as the header; within a quoted cell a quote is doubled: ""',
    "bad_text": "write the file as UTF-8",
    "too_long_text": "data.max_characters and data.max_row_bytes say how long a text and a row may be",
    "in_evaluation_file": "every such prompt is asked by a --decontaminate file too: is it the training data itself?",
    "unread_key": "--chat-template FILE takes a template that writes the calls of tools",
    "unknown_role": f"{_ROLES}: rename the others, in the file or in a map function of your own",
    "no_assistant_reply": "chosen, rejected and each response must end with the assistant's message",
    "empty_reply": "the last message has no text: is the reply in another column?",
    "empty_conversation": "chosen, rejected or a response has no messages: is the reply in another column?",
    "chosen_equals_rejected": "both answers are the same: does the map function read one column twice?",
    "reward_token_in_text": "choose a token that no text holds: rmcli inspect-token names the candidates",
    "template_error": "the chat template refuses such conversations: --chat-template FILE|NAME takes another",
    "no_end_of_turn": "take a reserved token (-s model.reward_token=TOKEN), or a template that ends turns",
    "overlong": _LONGER,
    "identical_after_truncation": f"the answers differ only past the cut: {_LONGER}",
    "longer_than_pack": "raise data.max_packed_length (-s data.max_packed_length=N)",
    "bad_weight": "weight is a number above 0",
    "bad_label": "label is a number from 0 to 1: how probable it is that chosen is better; 1 if it is missing",
    "bad_margin": "margin is a number of at least 0, how much better chosen is",
    "bad_comparisons": "responses need exactly one of ranks, scores (a number for each) or comparisons",
    "transcript_in_text": "give the turns as messages, [{role, content}, ...], or map them: --map-fn FILE.py:F",
    "unreadable_messages": "give message lists as JSON, not as text that Python or numpy printed",
    "prompt_in_reply": "leave the prompt out of the answers, or give whole conversations as messages",
}
_OBJECT_OF_ROWS = re.compile(rb'\s*\{(?:\s*"[^"]*"\s*:\s*(?:"[^"]*"|[\w.+-]+)\s*,)*\s*"([^"]+)"\s*:\s*\[\s*\{')
_ABOUT_FILES = ("bad_json", "bad_text", "wrong_type")  # and missing_column: the whole file may be another thing


def hint(reason: str, place: str, said: str | None = None) -> str:
    """What helps where most rows are rejected for `reason`, the first at `place` (file:line).

    `said`: what refused it said itself, such as a chat template.
    """
    if said:
        return f"it says {said!r}; {_HINTS.get(reason, _FIT)}"
    file, _, line = place.rpartition(":")
    if reason in _ABOUT_FILES or reason.startswith("missing_column"):
        about_file = hint_of_beginning(file)
        if about_file is not None:
            return about_file
    if reason == "unknown_role" and (roles := _unknown_roles(file, line)):
        instead = "; a developer's message is a system message" if "developer" in roles else ""
        return f"{_ROLES}, not {', '.join(roles)}{instead}: rename it, in the file or in a map function of your own"
    return _HINTS.get(reason.partition(" ")[0], _FIT)


def hint_of_beginning(file: str) -> str | None:
    """What helps where a text file as a whole is not what its ending says; None where it begins as it should."""
    if not file.endswith(TEXT_ENDINGS):
        return None
    try:
        with open_bytes(file) as opened:
            head = opened.read(_HEAD)
    except RmcliError:
        return None
    if not _is_utf8(head):
        return "the file is not UTF-8 but perhaps Latin-1: iconv -f LATIN1 -t UTF-8 IN > OUT"
    if b"\r" in head and b"\n" not in head:
        return "its lines end in CR alone, as on old Macs: tr '\\r' '\\n' < IN > OUT"
    if ".json" not in file:
        return None
    held = _OBJECT_OF_ROWS.match(head.removeprefix(b"\xef\xbb\xbf"))
    if held and held[1].decode() not in {column for known in NAMED.values() for column in known.columns}:
        return (
            f"the rows lie within one object, in {held[1].decode()!r}: jq -c '.{held[1].decode()}[]' IN > OUT.jsonl"
        )
    first = head.lstrip().split(b"\n", 1)[0].strip()
    if first.startswith(b"[") and ".jsonl" in file:
        return "it holds a JSON array, not JSON lines: call it .json"
    if first.startswith(b"{") and len(head.splitlines()) > 1 and not _is_json(first):
        return "a JSON object goes over several lines here, but each row must be one line: jq -c . IN > OUT.jsonl"
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(head) == _HEAD and error.start > len(head) - 4  # a character cut in two
    return True


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _unknown_roles(file: str, line: str) -> list[str]:
    """The roles of a row that none may have, each once."""
    try:
        row = next((read.value for read in read_file(file) if str(read.number) == line), None)
    except (RmcliError, KeyError):  # not a file at all: stdin, the Hub
        return []
    known = {"system", "user", "assistant", "tool"}
    return [*dict.fromkeys(str(role) for role in _roles_in(row) if role not in known)]


def _roles_in(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "role" in value:
            yield value["role"]
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _roles_in(inner)
