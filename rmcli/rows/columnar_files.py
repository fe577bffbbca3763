"""Parquet and Arrow."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.rows.files import LONGEST_ROW, Read, excerpt_of, open_bytes

ROWS_AT_A_TIME = 1024  # of Arrow, as Python objects
PARQUET_ROWS_AT_A_TIME = 32  # a page of a few bytes may stand for gigabytes of the same text
_BYTES_AT_A_TIME = 2**24  # of text in rows that become Python objects together
_ARROW_FILE_MAGIC = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    """The rows, of which one over `limit` bytes is rejected before it is a Python object."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_bytes(name) as raw, parquet.ParquetFile(raw) as file:
            yield from _rows_of(file.iter_batches(batch_size=PARQUET_ROWS_AT_A_TIME), limit)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RmcliError(f"source {name}: not a readable Parquet file: {error}") from error


def read_arrow_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    """An Arrow IPC file, or a stream as `datasets` writes it; a row over `limit` bytes is rejected."""
    import pyarrow as pa

    try:
        with open_bytes(name) as raw:
            if raw.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC:
                file = pa.ipc.open_file(raw)
                yield from _rows_of((file.get_batch(index) for index in range(file.num_record_batches)), limit)
                return
            raw.seek(0)
            yield from _rows_of(pa.ipc.open_stream(raw), limit)
            size = raw.seek(0, io.SEEK_END)
            raw.seek(max(0, size - len(_ARROW_STREAM_END)))
            if raw.read() != _ARROW_STREAM_END:
                output.warn(f"source {name} ends without Arrow's end-of-stream mark: it may have been cut short")
    except pa.ArrowInvalid as error:
        raise RmcliError(f"source {name}: not a readable Arrow file: {error}") from error


def count_columnar_rows(name: str) -> int:
    """How many rows a Parquet or Arrow file holds, as it says itself. Raises RmcliError when it is broken."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_bytes(name) as raw:
            if name.endswith(".parquet"):
                with parquet.ParquetFile(raw) as columns:
                    return columns.metadata.num_rows
            is_file = raw.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
            raw.seek(0)
            if not is_file:
                return sum(batch.num_rows for batch in pa.ipc.open_stream(raw))
            file = pa.ipc.open_file(raw)
            return sum(file.get_batch(index).num_rows for index in range(file.num_record_batches))
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RmcliError(f"source {name}: cannot be read: {error}") from error


def _rows_of(batches: Iterable[Any], limit: int) -> Iterator[Read]:
    """The rows of record batches; one whose text is not UTF-8, or that is too long, costs no other."""
    number = 0
    for batch in batches:
        for part in _parts_of(batch):
            if part.num_rows == 1 and part.nbytes > limit:
                number += 1
                yield Read(number, None, "too_long_text", f"({part.nbytes:,} bytes)")
                continue
            try:
                values = part.to_pylist()
            except UnicodeDecodeError:
                values = [_row_or_what_is_readable(part.slice(index, 1)) for index in range(part.num_rows)]
            for value in values:
                number += 1
                if isinstance(value, str):
                    yield Read(number, None, "bad_text", value)
                else:
                    yield Read(number, value, None, excerpt_of(value))


def _parts_of(batch: Any) -> Iterator[Any]:
    """The batch in slices of few rows, fewer where they are long: what holds more than its share is cut in two."""
    waiting = [batch.slice(start, ROWS_AT_A_TIME) for start in range(0, batch.num_rows, ROWS_AT_A_TIME)][::-1]
    while waiting:
        part = waiting.pop()
        if part.num_rows > 1 and part.nbytes > _BYTES_AT_A_TIME:
            half = part.num_rows // 2
            waiting += [part.slice(half), part.slice(0, half)]
        else:
            yield part


def _row_or_what_is_readable(row: Any) -> dict[str, Any] | str:
    """The one row; or, where a text is not UTF-8, the excerpt of the columns that can be read."""
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError:
        return excerpt_of({name: _value_or_mark(row.column(name)) for name in row.schema.names})


def _value_or_mark(column: Any) -> Any:
    try:
        return column.to_pylist()[0]
    except UnicodeDecodeError:
        return "(not UTF-8)"
