"""CSV under a header, every cell a text."""

import csv
import io
import sys
from collections.abc import Iterator

from rmcli.errors import RmcliError
from rmcli.rows.files import EXCERPT_LENGTH, Read, is_encodable, open_bytes


def read_csv_file(name: str) -> Iterator[Read]:
    """Rows under a header. Every cell is text: a date or a number is not guessed at."""
    csv.field_size_limit(sys.maxsize)  # the default, 128 KiB, stops at a long answer
    with open_bytes(name) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""), strict=True)
        header = next(rows, [])
        if len(set(header)) < len(header):
            doubled = next(column for column in header if header.count(column) > 1)
            raise RmcliError(f"source {name}: the column {doubled!r} stands twice in the header", "rename one")
        number = 0
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield Read(number, None, "bad_csv", str(error))
                continue
            if not cells:
                continue
            number += 1
            excerpt = ",".join(cells)[:EXCERPT_LENGTH]
            if not is_encodable(cells):
                yield Read(number, None, "bad_text", excerpt.encode("utf-8", "replace").decode())
            elif len(cells) != len(header):
                yield Read(number, None, "bad_csv", excerpt)
            else:
                yield Read(number, dict(zip(header, cells, strict=True)), None, excerpt)
