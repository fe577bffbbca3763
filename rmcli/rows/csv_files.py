"""CSV and TSV under a header, every cell a text."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.rows.beginnings import check_is_text
from rmcli.rows.files import EXCERPT_LENGTH, LONGEST_ROW, Read, is_encodable, open_bytes

# When the lines within one record are rows of their own, swallowed by a quote that was opened and never closed. Of a
# record that is broken anyway a few tell. One that is not may be an answer that holds a table: there nearly all lines
# must be rows; MANY of them are said, and only TOO_MANY stop.
_FEW, _MOST_OF_BROKEN = 3, 0.5
_MANY, _TOO_MANY, _MOST_OF_WHOLE = 20, 100, 0.9
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_csv_file(name: str, limit: int = LONGEST_ROW, delimiter: str = ",") -> Iterator[Read]:
    """Rows under a header. Every cell is text: a date or a number is not guessed at.

    A row of over `limit` characters is rejected. Raises RmcliError where a quoted cell has swallowed rows, with the
    line where its quote was opened, and for a header that cannot be right.
    """
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, stops at a long answer
    check_is_text(name)
    with _Records(name, delimiter, limit).opened() as records:
        header = records.header()
        number = 0
        while True:
            try:
                cells, problem = next(records.rows), None
            except StopIteration:
                return
            except csv.Error as error:
                cells, problem = [], str(error)
            except _TooLongError as error:
                number += 1
                yield Read(number, None, "too_long_text", error.excerpt)
                continue
            if not cells and problem is None:
                records.begin()
                continue
            number += 1
            excerpt = problem or ",".join(cells)[:EXCERPT_LENGTH]
            is_bad = problem is not None or len(cells) != len(header)
            records.check_nothing_swallowed(len(header), is_bad)
            records.begin()
            if not is_encodable(cells):
                yield Read(number, None, "bad_text", excerpt.encode("utf-8", "replace").decode())
            elif is_bad:
                yield Read(number, None, "bad_csv", excerpt)
            else:
                yield Read(number, dict(zip(header, cells, strict=True)), None, excerpt)


def read_tsv_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    """The same with tabs between the cells."""
    return read_csv_file(name, limit, "\t")


class _TooLongError(Exception):
    """A line over the limit; `excerpt` is how its record begins."""

    def __init__(self, excerpt: str) -> None:
        super().__init__(excerpt)
        self.excerpt = excerpt


class _Records:
    """The records of one file, `rows`, and the lines that the one at hand takes."""

    def __init__(self, name: str, delimiter: str, limit: int) -> None:
        self.name, self.delimiter, self.limit = name, delimiter, limit
        self.lines: list[str] = []  # of this record
        self.size = 0  # of this record, in characters
        self.before = 0  # lines of the file before it
        self.ended = False
        self.rows = csv.reader(self, delimiter=delimiter, strict=True)

    @contextmanager
    def opened(self) -> Iterator["_Records"]:
        with open_bytes(self.name) as file:
            # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and no other.
            self.text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
            yield self

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> str:
        """The next line, for csv.reader. Of one that takes its record over the limit no more than that is read."""
        line = self.text.readline(self.limit + 1 - self.size)
        if not line:
            self.ended = True
            raise StopIteration
        self.lines.append(line)
        self.size += len(line)
        if self.size > self.limit:
            if len(self.lines) > 1:
                raise self._swallowing(f"is not closed within {self.limit:,} characters")
            while not line.endswith(("\n", "\r")) and (line := self.text.readline(2**16)):
                pass
            excerpt = self.lines[0][:EXCERPT_LENGTH].encode("utf-8", "replace").decode()
            self.begin()
            raise _TooLongError(excerpt)
        return line

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.before += len(self.lines)
        self.lines, self.size = [], 0

    def header(self) -> list[str]:
        try:
            header = next(self.rows, [])
        except (csv.Error, _TooLongError) as error:
            raise RmcliError(f"source {self.name}: the header, line 1, cannot be read: {error}", "mend it") from error
        self.begin()
        if len(set(header)) < len(header):
            doubled = next(column for column in header if header.count(column) > 1)
            raise RmcliError(f"source {self.name}: the column {doubled!r} stands twice in the header", "rename one")
        for other, words in _DELIMITERS.items():
            if len(header) == 1 and other != self.delimiter and other in header[0]:
                raise RmcliError(
                    f"source {self.name}: the header is one column, {header[0][:60]!r}: its cells stand between "
                    f"{words}, not {_DELIMITERS[self.delimiter]}",
                    "call it .tsv" if other == "\t" else "save it with commas as .csv, with tabs as .tsv, or as JSON",
                )
        return header

    def check_nothing_swallowed(self, width: int, is_bad: bool) -> None:
        """Raise RmcliError when this record holds lines that are rows of `width` cells, or runs into the end."""
        within = self.lines[1:]
        if not within or (not is_bad and (len(within) < _MANY or width == 1)):
            return
        if is_bad and self.ended:
            raise self._swallowing("is never closed")
        rows = sum(self._is_row(line, width) for line in within)
        few, most = (_FEW, _MOST_OF_BROKEN) if is_bad else (_MANY, _MOST_OF_WHOLE)
        if rows < few or rows < most * len(within):
            return
        error = self._swallowing(f"takes in the next {len(within):,} lines, {rows:,} of which are rows themselves")
        if is_bad or rows >= _TOO_MANY:
            raise error
        output.warn(f"{error.message}; read as it stands, one row")

    def _is_row(self, line: str, width: int) -> bool:
        try:
            return len(next(csv.reader([line], delimiter=self.delimiter, strict=True), [])) == width
        except csv.Error:
            return False

    def _swallowing(self, what: str) -> RmcliError:
        at = self.before + 1 + _last_opening(self.lines, self.delimiter)
        return RmcliError(
            f"source {self.name}: line {at}: a quote is opened that {what}: "
            f"{self.lines[at - self.before - 1].strip()[:60]!r}".encode("utf-8", "replace").decode(),
            'close it; within a quoted cell a quote is doubled: "". Answers that hold tables go into JSON lines',
        )


def _last_opening(lines: Sequence[str], delimiter: str) -> int:
    """In which of a record's lines, from 0, the last quoted cell begins."""
    found, is_quoted, is_open = 0, False, False  # whether the cell is a quoted one, and not closed
    before = delimiter
    for number, line in enumerate(lines):
        for character in line:
            if character != '"':
                is_quoted = is_open or (is_quoted and character not in (delimiter, "\n", "\r"))
            elif is_quoted:
                is_open = not is_open  # a doubled quote closes and opens again
            elif before in (delimiter, "\n", "\r"):
                found, is_quoted, is_open = number, True, True
            before = character
    return found
