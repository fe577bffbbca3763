"""The input rows that become one group each: one row, or consecutive ones of one key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rmcli.errors import RmcliError, Skip
from rmcli.records import RawRow
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.own_function import Calling

MOST_ROWS_OF_A_GROUP = 1000
CHUNK = 512  # groups rendered and tokenized at a time
CHUNK_CHARACTERS = 2**23  # and about so much text


@dataclass(frozen=True)
class Unit:
    """The input rows that become one group: one row, or consecutive ones of one key."""

    row_id: int  # of its first row, counted from 0 over all sources
    rows: tuple[RawRow, ...]

    @property
    def place(self) -> str:
        return f"{self.rows[0].file}:{self.rows[0].line}"


def units(rows: Iterator[RawRow], map_function: MapFunction, row_id: int) -> Iterator[Unit]:
    """Rows one by one, or consecutive rows of one key together where the map function takes them so.

    A row that cannot be read, or has no key, is a unit of its own. Raises RmcliError for too many rows of one key.
    """
    together: list[RawRow] = []
    last_key: object = None

    def finished() -> Iterator[Unit]:
        nonlocal together, row_id
        if together:
            yield Unit(row_id, tuple(together))
            row_id += len(together)
            together = []

    for row in rows:
        row, key = _with_key(row, map_function)
        if key is None or key != last_key or (together and row.file != together[-1].file):
            yield from finished()
        together.append(row)
        last_key = key
        if key is None:
            yield from finished()
        elif len(together) > MOST_ROWS_OF_A_GROUP:
            raise RmcliError(
                f"{row.file}:{row.line}: more than {MOST_ROWS_OF_A_GROUP:,} rows in a row belong to one group",
                "does the map function fit the data? It tells groups apart by its rows_key",
            )
    yield from finished()


def _with_key(row: RawRow, map_function: MapFunction) -> tuple[RawRow, object]:
    """The row and what it shares with the others of its group; None when it stands alone."""
    if map_function.rows_key is None or row.value is None:
        return row, None
    try:
        with Calling(map_function.rows_key, f"{row.file}:{row.line}", [row.value]):
            return row, map_function.rows_key(row.value)
    except Skip as skip:
        return replace(row, value=None, problem=skip.reason), None


def in_chunks(units: Iterator[Unit], num_shards: int = 1) -> Iterator[list[Unit]]:
    """CHUNK units at a time for each shard, fewer where they hold much text."""
    chunk: list[Unit] = []
    size = 0
    for unit in units:
        chunk.append(unit)
        size += sum(_text_size(row.value) for row in unit.rows)
        if len(chunk) == CHUNK * num_shards or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _text_size(value: Any) -> int:
    """Characters of all the texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text_size, value.values()))
    return sum(map(_text_size, value)) if isinstance(value, list | tuple) else 0
