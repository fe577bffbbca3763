"""JSON lines and JSON arrays, streaming: one bad row costs no other."""

import io
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import IO, Any

from rmcli.errors import RmcliError
from rmcli.rows.beginnings import check_is_text
from rmcli.rows.files import EXCERPT_LENGTH, LONGEST_ROW, Read, bounded_lines, is_encodable, open_bytes

_CHARACTERS_AT_A_TIME = 2**16
_SIGNS = re.compile(r'\\.|[\\"{}\[\],]', re.DOTALL)  # what tells where an element ends; an escape is one sign
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is half of a character; alone it is none


def parse_json_line(number: int, data: bytes, limit: int = LONGEST_ROW) -> Read:
    """One JSON line. Strict where `json` is lax: UTF-8, encodable text, an object, no key of it twice.

    One of over `limit` bytes is not looked at.
    """
    if len(data) > limit + 1 or (len(data) > limit and not data.endswith(b"\n")):
        excerpt = data[: 4 * EXCERPT_LENGTH].decode("utf-8", errors="replace").strip()[:EXCERPT_LENGTH]
        return Read(number, None, "too_long_text", excerpt)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Read(number, None, "bad_json", data.decode("utf-8", errors="replace").strip()[:EXCERPT_LENGTH])
    excerpt = text.strip()[:EXCERPT_LENGTH]
    keys = _Keys()
    try:
        value = json.loads(text, object_pairs_hook=keys)
    except (ValueError, RecursionError):
        return Read(number, None, "bad_json", excerpt)
    if keys.doubled:
        return Read(number, None, "bad_json", excerpt)
    return _checked(number, value, excerpt, may_be_broken=_SURROGATE.search(text) is not None)


def read_json_lines(file: IO[bytes], limit: int = LONGEST_ROW) -> Iterator[Read]:
    """Every line that is not blank, by its line number. A byte order mark before the first is no part of it.

    A line of over `limit` bytes is never held whole.
    """
    for number, line in enumerate(bounded_lines(file, limit), 1):
        data = line.removeprefix(BOM_UTF8) if number == 1 else line
        if data.strip():
            yield parse_json_line(number, data, limit)


def read_json_lines_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    check_is_text(name)
    with open_bytes(name) as file:
        yield from read_json_lines(file, limit)


def read_json_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    """An array, row by row; anything else is read as JSON lines."""
    check_is_text(name)
    with open_bytes(name) as file:
        first = b""
        while not first:  # blank lines may come before an array
            line = file.readline(_CHARACTERS_AT_A_TIME)
            if not line:
                return
            first = line.removeprefix(BOM_UTF8).strip()
        is_array = first.startswith(b"[")
    if not is_array:
        yield from read_json_lines_file(name, limit)
        return
    with open_bytes(name) as file:
        # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and no other.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        yield from _read_array(name, text, limit)


def _read_array(name: str, file: io.TextIOBase, limit: int) -> Iterator[Read]:
    """The elements of the one array that `file` holds, with a buffer of about one element.

    Raises RmcliError where the array itself is broken: what follows cannot be told apart any more.
    """
    array = _ArrayText(name, file, limit)
    array.peek()
    array.at += 1  # the opening bracket, which the caller has seen
    while (mark := array.peek()) != "]":
        if array.number:
            if mark != ",":
                raise array.broken("a comma is missing" if mark else "the array is cut short")
            array.at += 1
        yield array.element()
    array.at += 1
    if array.peek():
        raise array.broken("there is more text behind the array")


class _ArrayText:
    """The text of a JSON array, of which only the part at `at` is in memory."""

    def __init__(self, name: str, file: io.TextIOBase, limit: int) -> None:
        self.name, self.file, self.limit = name, file, limit
        self.buffer, self.at, self.ended = "", 0, False
        self.number = 0  # elements read
        self.keys = _Keys()
        self.decoder = json.JSONDecoder(object_pairs_hook=self.keys)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at].isspace():
                self.at += 1
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self._read_on(_CHARACTERS_AT_A_TIME)

    def element(self) -> Read:
        """The next element. Reads on until it is whole; each time twice as much, so that it costs linear time."""
        self.peek()
        amount = _CHARACTERS_AT_A_TIME
        while True:
            self.keys.doubled = False
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
                if end < len(self.buffer) or self.ended:  # a number at the very end may go on
                    break
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - 16
                if self.ended or not unfinished:
                    raise self.broken("what comes is no JSON") from error
            except RecursionError as error:
                raise self.broken("what comes is nested too deeply") from error
            if len(self.buffer) - self.at > self.limit:
                return self._pass_over()
            self._read_on(amount)
            amount *= 2
        if end - self.at > self.limit:
            return self._pass_over()
        self.number += 1
        excerpt = self._excerpt(end)
        self.at = end
        if self.keys.doubled:
            return Read(self.number, None, "bad_json", excerpt)
        return _checked(self.number, value, excerpt, may_be_broken=True)

    def _pass_over(self) -> Read:
        """An element over the limit. It is not parsed: its quotes and brackets tell where it ends."""
        excerpt = self._excerpt(len(self.buffer))
        depth, in_string = 0, False
        while True:
            for sign in _SIGNS.finditer(self.buffer, self.at):
                self.at = sign.start()
                if sign[0] == "\\":  # the end of the buffer parts it from what it escapes
                    break
                if in_string or sign[0] == '"':
                    in_string ^= sign[0] == '"'
                elif depth == 0 and sign[0] in ",]":
                    self.number += 1
                    return Read(self.number, None, "too_long_text", excerpt)
                elif sign[0] != ",":
                    depth += 1 if sign[0] in "[{" else -1
            else:
                self.at = len(self.buffer)
            if self.ended:
                raise self.broken("the array is cut short")
            self._read_on(_CHARACTERS_AT_A_TIME)

    def _excerpt(self, end: int) -> str:
        return self.buffer[self.at : min(end, self.at + EXCERPT_LENGTH)].encode("utf-8", "replace").decode()

    def broken(self, what: str) -> RmcliError:
        near = self.buffer[self.at : self.at + 60].encode("utf-8", "replace").decode()
        return RmcliError(
            f"source {self.name}: after element {self.number} of the array {what}: {near!r}",
            "mend the file, or write it as JSON lines, where one bad row costs no other",
        )

    def _read_on(self, amount: int) -> None:
        more = self.file.read(amount)
        self.buffer, self.at, self.ended = self.buffer[self.at :] + more, 0, not more


class _Keys:
    """For JSONDecoder: notes a key that stands twice in one object, of which `json` would keep the last."""

    def __init__(self) -> None:
        self.doubled = False

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        self.doubled |= len(value) < len(pairs)
        return value


def _checked(number: int, value: Any, excerpt: str, may_be_broken: bool) -> Read:
    """The row, when it is an object whose text can be encoded; an escape can stand for half of a character."""
    if may_be_broken and not is_encodable(value):
        return Read(number, None, "bad_json", excerpt)
    if not isinstance(value, dict):
        return Read(number, None, "wrong_type", excerpt)
    return Read(number, value, None, excerpt)
