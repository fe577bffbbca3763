"""Where rows come from: files, folders, Hub data sets and the built-in tasks. Every row keeps its file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from rmcli import hub
from rmcli.errors import ConfigError, RmcliError
from rmcli.records import RawRow
from rmcli.tasks import generate

FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
BUILT_IN = "tasks:"  # tasks:NUM_ROWS or tasks:NUM_ROWS:SEED
EXCERPT_LENGTH = 200


def check_sources(sources: Sequence[str]) -> None:
    """Raise ConfigError for a source that is no file, folder, Hub name or built-in. Uses no network."""
    if not sources:
        raise ConfigError(
            "no source to prepare", "name a file, folder or Hub data set, or a map function that knows one"
        )
    for source in sources:
        if _is_built_in(source):
            _task_numbers(source)
        elif not _is_hub_name(source):
            list_files(source)


def list_files(source: str) -> list[Path]:
    """The files a local source stands for, in sorted order."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(FILE_ENDINGS))
        if not files:
            raise ConfigError(f"source {source}: no {', '.join(FILE_ENDINGS)} file in this folder")
        return files
    if not path.is_file():
        raise ConfigError(f"source {source}: no such file or folder", "a Hub data set is written org/name")
    if not path.name.endswith(FILE_ENDINGS):
        raise ConfigError(f"source {source}: not one of {', '.join(FILE_ENDINGS)}")
    return [path]


def absolute_source(source: str) -> str:
    """The source as another command, started elsewhere, can find it."""
    return source if _is_built_in(source) or _is_hub_name(source) else str(Path(source).expanduser().absolute())


def read_rows(sources: Sequence[str], split: str) -> Iterator[RawRow]:
    """All rows of all sources in order. A row that cannot be read comes with its `problem` instead of a value."""
    for source_id, source in enumerate(sources):
        if _is_built_in(source):
            yield from _read_tasks(source_id, source)
        elif _is_hub_name(source):
            yield from _read_hub(source_id, source, split)
        else:
            for file in list_files(source):
                read = _read_parquet if file.name.endswith(".parquet") else _read_json_lines
                yield from read(source_id, file)


def count_rows(sources: Sequence[str]) -> int | None:
    """How many rows `read_rows` will give, for a progress bar; None when a source is not local.

    Lines are counted without being parsed, which costs little beside encoding them.
    """
    total = 0
    for source in sources:
        if _is_built_in(source):
            total += _task_numbers(source)[0]
        elif _is_hub_name(source):
            return None
        else:
            total += sum(map(_count_file, list_files(source)))
    return total


def _count_file(path: Path) -> int:
    if not path.name.endswith(".parquet"):
        return sum(1 for line in read_lines(path) if line.strip())
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise RmcliError(f"source {path}: not a readable Parquet file: {error}") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The file's lines, decompressed when it ends in .gz. Raises RmcliError when it cannot be read to its end."""
    try:
        with cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise RmcliError(f"{path} cannot be read: {error}") from error


def parse_json_row(source_id: int, file: str, line: int, data: bytes) -> RawRow:
    """One JSON line. Strict where `json` is lax: bytes must be UTF-8, text encodable, the value an object."""
    text = data.decode("utf-8", errors="replace").strip()
    excerpt = text[:EXCERPT_LENGTH]
    try:
        value = json.loads(data.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate would stop the tokenizer later
    except (ValueError, RecursionError):
        return RawRow(source_id, file, line, None, "bad_json", excerpt)
    if not isinstance(value, dict):
        return RawRow(source_id, file, line, None, "wrong_type", excerpt)
    return RawRow(source_id, file, line, value, None, excerpt)


def _is_built_in(source: str) -> bool:
    return source.startswith(BUILT_IN)


def _is_hub_name(source: str) -> bool:
    """`org/name`, and nothing of that name here, and no ending of a data file."""
    parts = source.split("/")
    return (
        len(parts) == 2
        and all(part and not part.startswith((".", "~")) for part in parts)
        and not source.endswith((*FILE_ENDINGS, ".json", ".csv", ".gz", ".zst", ".arrow", ".txt"))
        and not Path(source).exists()
    )


def _task_numbers(source: str) -> tuple[int, int]:
    """(rows, seed) of tasks:NUM_ROWS[:SEED]."""
    numbers = source.removeprefix(BUILT_IN).split(":")
    if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
        raise ConfigError(f"source {source!r} is not of the form {BUILT_IN}NUM_ROWS[:SEED]")
    return int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0


def _read_tasks(source_id: int, source: str) -> Iterator[RawRow]:
    for line, value in enumerate(generate(*_task_numbers(source)), 1):
        yield RawRow(source_id, source, line, value, None, _excerpt(value))


def _read_json_lines(source_id: int, path: Path) -> Iterator[RawRow]:
    for line, data in enumerate(read_lines(path), 1):
        if data.strip():
            yield parse_json_row(source_id, str(path), line, data)


def _read_parquet(source_id: int, path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    from pyarrow import parquet

    line = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for value in batch.to_pylist():
                    line += 1
                    yield RawRow(source_id, str(path), line, value, None, _excerpt(value))
    except (OSError, pa.ArrowInvalid) as error:
        raise RmcliError(f"source {path}: not a readable Parquet file: {error}") from error


def _read_hub(source_id: int, name: str, split: str) -> Iterator[RawRow]:
    from datasets import load_dataset

    try:
        with hub.asking():
            data_set = load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RmcliError(
            f"data set {name} (split {split}) cannot be had from the Hub: {reason}",
            "check the name and your access (hf auth login), or give local files: rmcli prepare FILE... --map-fn F",
        ) from error
    for line, value in enumerate(data_set, 1):
        yield RawRow(source_id, name, line, dict(value), None, _excerpt(value))


def _excerpt(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:EXCERPT_LENGTH]
