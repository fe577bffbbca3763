"""The bytes of a file at a path or URL, and what a reader makes of one row: a `Read`."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from rmcli.errors import ConfigError, RmcliError, explained

TEXT_ENDINGS = tuple(kind + packed for kind in (".jsonl", ".json", ".csv", ".tsv") for packed in ("", ".gz", ".zst"))
ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow")
PROBLEMS = ("bad_json", "wrong_type", "bad_csv", "bad_text", "too_long_text")  # why a row could not be read
LONGEST_ROW = 2**26  # bytes of a row in its file, the default of data.max_row_bytes
EXCERPT_LENGTH = 200
_BYTES_AT_A_TIME = 2**20


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


def read_lines(path: Path, limit: int = LONGEST_ROW) -> Iterator[bytes]:
    """The file's lines, decompressed, bounded as by `bounded_lines`. Raises RmcliError when it ends too early."""
    with open_bytes(str(path)) as file:
        yield from bounded_lines(file, limit)


def bounded_lines(file: IO[bytes], limit: int) -> Iterator[bytes]:
    """The lines of `file`. Of one over `limit` bytes the first `limit` + 1 are given, and the rest is passed over."""
    while line := file.readline(limit + 1):
        yield line
        if len(line) > limit and not line.endswith(b"\n"):
            while (rest := file.readline(_BYTES_AT_A_TIME)) and not rest.endswith(b"\n"):
                pass


def is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True


def excerpt_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:EXCERPT_LENGTH]
