"""Files to rows, streaming: JSON lines, JSON arrays, CSV, Parquet and Arrow, each from a path or a URL.

A reader yields (number, value, problem, text): the line or row number counted from 1, and the row, or why there is
none and how its text begins. What cannot be read any further raises RmcliError; nothing ends early in silence.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, explained

TEXT_ENDINGS = tuple(kind + packed for kind in (".jsonl", ".json", ".csv") for packed in ("", ".gz", ".zst"))
ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow")
PROBLEMS = ("bad_json", "wrong_type", "bad_csv", "bad_text")  # why a row could not be read
EXCERPT_LENGTH = 200
ROWS_AT_A_TIME = 1024  # of Parquet and Arrow, as Python objects
LONGEST_ELEMENT = 2**28  # characters of one element of a JSON array
_CHARACTERS_AT_A_TIME = 2**16
_ARROW_FILE_MAGIC = b"ARROW1"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that is half of a character; alone it is none
_ARROW_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Read(NamedTuple):
    """One row of a file. `value` is None when it could not be read; `problem`, one of PROBLEMS, says why."""

    number: int
    value: dict[str, Any] | None
    problem: str | None
    text: str


def is_url(name: str) -> bool:
    """Whether fsspec opens it: s3://, gs://, hf://, memory://, file://."""
    return "://" in name


def check_url(url: str) -> None:
    """Raise ConfigError when nothing installed speaks the URL's protocol. Uses no network."""
    import fsspec

    protocol = url.split("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{url}: {error}", "install the fsspec package of that protocol, e.g. s3fs or gcsfs"
        ) from error


def files_of(name: str) -> list[str]:
    """The readable files a path or URL stands for: itself, or all below a folder, sorted.

    Raises ConfigError when there is nothing, or nothing that can be read.
    """
    if is_url(name):
        files = _files_of_url(name)
    else:
        path = Path(name).expanduser()
        if not path.exists():
            raise ConfigError(f"source {name}: no such file or folder", "a Hub data set is written org/name")
        files = [str(file) for file in path.rglob("*") if file.is_file()] if path.is_dir() else [str(path)]
    of_data_sets = _bookkeeping(name, files)
    readable = sorted(file for file in files if file.endswith(ENDINGS) and file not in of_data_sets)
    if not readable and len(files) == 1 and PurePosixPath(files[0]).name == PurePosixPath(name).name:
        raise ConfigError(f"source {name}: not one of {', '.join(ENDINGS)}")
    if not readable:
        raise ConfigError(f"source {name}: no {', '.join(ENDINGS)} file in this folder")
    return readable


def _bookkeeping(name: str, files: list[str]) -> set[str]:
    """The JSON files that `datasets` writes beside its Arrow files (save_to_disk), which hold no rows.

    Raises ConfigError for a saved set of several splits: which of them is meant is the user's to say.
    """
    here = set(files)
    saved = [file.removesuffix("state.json") for file in sorted(files) if file.endswith("state.json")]
    saved = [folder for folder in saved if f"{folder}dataset_info.json" in here]
    splits: dict[str, list[str]] = {}  # by the folder of the whole set
    for folder in saved:
        root, slash, split = folder.rstrip("/").rpartition("/")
        if f"{root}{slash}dataset_dict.json" in here:
            splits.setdefault(root + slash, []).append(split)
    for root, names in splits.items():
        if len(names) > 1:
            raise ConfigError(
                f"source {name} holds a saved data set of {len(names)} splits, {', '.join(names)}",
                f"name one: {root}{'train' if 'train' in names else names[0]}",
            )
    inside = {f"{folder}{file}" for folder in saved for file in ("state.json", "dataset_info.json")}
    return inside | {f"{root}dataset_dict.json" for root in splits}


def _files_of_url(url: str) -> list[str]:
    import fsspec

    with explained(f"source {url} cannot be listed", "check the address and your access"):
        file_system, root = fsspec.core.url_to_fs(url)
        if not file_system.exists(root):
            raise ConfigError(f"source {url}: no such file or folder")
        return [file_system.unstrip_protocol(file) for file in file_system.find(root)]


def read_file(name: str) -> Iterator[Read]:
    """All rows of one file, by its ending."""
    kind = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    reader: Callable[[str], Iterator[Read]] = {
        "jsonl": read_json_lines_file,
        "json": read_json_file,
        "csv": read_csv_file,
        "parquet": read_parquet_file,
        "arrow": read_arrow_file,
    }[kind]
    return reader(name)


def _open_plainly(name: str) -> IO[bytes]:
    if not is_url(name):
        return Path(name).open("rb")
    import fsspec

    file_system, path = fsspec.core.url_to_fs(name)
    return cast(IO[bytes], file_system.open(path, "rb"))


@contextmanager
def open_bytes(name: str) -> Iterator[IO[bytes]]:
    """A path or URL for reading, decompressed when it ends in .gz or .zst.

    Raises RmcliError when it cannot be opened, or inside the context when it cannot be read to its end.
    """
    try:
        with explained(f"{name} cannot be read") if is_url(name) else nullcontext(), _open_plainly(name) as raw:
            if name.endswith(".gz"):
                with gzip.open(raw, "rb") as file:
                    yield cast(IO[bytes], file)
            elif name.endswith(".zst"):
                import pyarrow as pa

                # Knows several frames in one file, and unlike the package zstandard notices a cut one.
                with io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")) as file:
                    yield file
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        raise RmcliError(f"{name} cannot be read: {error}") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The file's lines, decompressed. Raises RmcliError when it cannot be read to its end."""
    with open_bytes(str(path)) as file:
        yield from file


def parse_json_line(number: int, data: bytes) -> Read:
    """One JSON line. Strict where `json` is lax: UTF-8, encodable text, an object, no key of it twice."""
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


def read_json_lines(lines: Iterable[bytes]) -> Iterator[Read]:
    """Every line that is not blank, by its line number. A byte order mark before the first is no part of it."""
    for number, line in enumerate(lines, 1):
        data = line.removeprefix(BOM_UTF8) if number == 1 else line
        if data.strip():
            yield parse_json_line(number, data)


def read_json_lines_file(name: str) -> Iterator[Read]:
    with open_bytes(name) as file:
        yield from read_json_lines(file)


def read_json_file(name: str) -> Iterator[Read]:
    """An array, row by row; anything else is read as JSON lines."""
    with open_bytes(name) as file:
        first = b""
        while not first:  # blank lines may come before an array
            line = file.readline(_CHARACTERS_AT_A_TIME)
            if not line:
                return
            first = line.removeprefix(BOM_UTF8).strip()
        is_array = first.startswith(b"[")
    if not is_array:
        yield from read_json_lines_file(name)
        return
    with open_bytes(name) as file:
        # A byte that is not UTF-8 becomes a lone surrogate, which costs its own row and no other.
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
        yield from _read_array(name, text)


def _read_array(name: str, file: io.TextIOBase) -> Iterator[Read]:
    """The elements of the one array that `file` holds, with a buffer of about one element.

    Raises RmcliError where the array itself is broken: what follows cannot be told apart any more.
    """
    array = _ArrayText(name, file)
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

    def __init__(self, name: str, file: io.TextIOBase) -> None:
        self.name, self.file = name, file
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
                if self.ended or not unfinished or len(self.buffer) > LONGEST_ELEMENT:
                    raise self.broken("what comes is no JSON") from error
            except RecursionError as error:
                raise self.broken("what comes is nested too deeply") from error
            self._read_on(amount)
            amount *= 2
        self.number += 1
        excerpt = self.buffer[self.at : min(end, self.at + EXCERPT_LENGTH)].encode("utf-8", "replace").decode()
        self.at = end
        if self.keys.doubled:
            return Read(self.number, None, "bad_json", excerpt)
        return _checked(self.number, value, excerpt, may_be_broken=True)

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
    if may_be_broken and not _is_encodable(value):
        return Read(number, None, "bad_json", excerpt)
    if not isinstance(value, dict):
        return Read(number, None, "wrong_type", excerpt)
    return Read(number, value, None, excerpt)


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True


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
            if not _is_encodable(cells):
                yield Read(number, None, "bad_text", excerpt.encode("utf-8", "replace").decode())
            elif len(cells) != len(header):
                yield Read(number, None, "bad_csv", excerpt)
            else:
                yield Read(number, dict(zip(header, cells, strict=True)), None, excerpt)


def read_parquet_file(name: str) -> Iterator[Read]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_bytes(name) as raw, parquet.ParquetFile(raw) as file:
            yield from _rows_of(file.iter_batches(batch_size=ROWS_AT_A_TIME))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RmcliError(f"source {name}: not a readable Parquet file: {error}") from error


def read_arrow_file(name: str) -> Iterator[Read]:
    """An Arrow IPC file, or a stream as `datasets` writes it."""
    import pyarrow as pa

    try:
        with open_bytes(name) as raw:
            if raw.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC:
                file = pa.ipc.open_file(raw)
                yield from _rows_of(file.get_batch(index) for index in range(file.num_record_batches))
                return
            raw.seek(0)
            yield from _rows_of(pa.ipc.open_stream(raw))
            size = raw.seek(0, io.SEEK_END)
            raw.seek(max(0, size - len(_ARROW_STREAM_END)))
            if raw.read() != _ARROW_STREAM_END:
                output.warn(f"source {name} ends without Arrow's end-of-stream mark: it may have been cut short")
    except pa.ArrowInvalid as error:
        raise RmcliError(f"source {name}: not a readable Arrow file: {error}") from error


def count_rows(name: str) -> int:
    """How many rows `read_file` will give. Parses what has no other way to tell: CSV and JSON arrays.

    Raises RmcliError for a file that is broken.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        if name.endswith(".parquet"):
            with open_bytes(name) as raw, parquet.ParquetFile(raw) as file:
                return file.metadata.num_rows
        if name.endswith(".arrow"):
            with open_bytes(name) as raw:
                is_file = raw.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
                raw.seek(0)
                if not is_file:
                    return sum(batch.num_rows for batch in pa.ipc.open_stream(raw))
                file = pa.ipc.open_file(raw)
                return sum(file.get_batch(index).num_rows for index in range(file.num_record_batches))
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RmcliError(f"source {name}: cannot be read: {error}") from error
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        with open_bytes(name) as file:
            return sum(1 for line in file if line.strip())
    return sum(1 for _ in read_file(name))


def _rows_of(batches: Iterable[Any]) -> Iterator[Read]:
    """The rows of record batches; one whose text is not UTF-8 costs no other."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
            part = batch.slice(start, ROWS_AT_A_TIME)
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


def excerpt_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:EXCERPT_LENGTH]
