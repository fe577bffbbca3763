"""Which files a path or URL stands for, their bytes, and what a reader makes of one row: a `Read`."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from rmcli.errors import ConfigError, RmcliError, explained

TEXT_ENDINGS = tuple(kind + packed for kind in (".jsonl", ".json", ".csv") for packed in ("", ".gz", ".zst"))
ENDINGS = (*TEXT_ENDINGS, ".parquet", ".arrow")
PROBLEMS = ("bad_json", "wrong_type", "bad_csv", "bad_text")  # why a row could not be read
EXCERPT_LENGTH = 200


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


def is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return True


def excerpt_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:EXCERPT_LENGTH]
