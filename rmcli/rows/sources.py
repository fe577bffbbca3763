"""Where rows come from: files, folders, URLs, Hub data sets, stdin and the built-in tasks.

Every row keeps its file and its line or row number. All reading is streaming: memory does not grow with the source.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmcli.backbones import hub
from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.records import RawRow
from rmcli.rows import readers
from rmcli.rows.files import ENDINGS, LONGEST_ROW, Read, check_url, excerpt_of, is_url
from rmcli.rows.folders import Found, find_files
from rmcli.rows.json_files import parse_json_line, read_json_lines
from rmcli.rows.readers import read_file
from rmcli.rows.tasks import generate

BUILT_IN = "tasks:"  # tasks:NUM_ROWS or tasks:NUM_ROWS:SEED
STDIN = "-"
Source = str | SourceSection  # a text is the path alone


def check_sources(sources: Sequence[Source], default_split: str | None = "train") -> None:
    """Raise ConfigError for a source that is no file, folder, URL, Hub name or built-in. Uses no network.

    `default_split` is read of a folder that holds several where its source names none; with None that is an error.
    """
    if not sources:
        raise ConfigError(
            "no source to prepare", "name a file, folder or Hub data set, or a map function that knows one"
        )
    paths = [as_section(source).path for source in sources]
    if paths.count(STDIN) > 1:
        raise ConfigError("source - is given twice, but stdin can be read once only")
    for source in map(as_section, sources):
        path = source.path
        if _is_built_in(path):
            _task_numbers(path)
        elif is_url(path):
            check_url(path)
        elif path != STDIN and not is_hub_name(path):
            find_files(path, source.split, default_split)
        may_hold_splits = path != STDIN and not _is_built_in(path)
        hub_keys = [key for key in ("split", "subset", "revision", "streaming") if getattr(source, key)]
        hub_keys = [key for key in hub_keys if not (key == "split" and may_hold_splits)]
        if hub_keys and not is_hub_name(path):
            raise ConfigError(f"source {path}: {hub_keys[0]} is for Hub data sets", "leave it out, or write org/name")


def as_section(source: Source) -> SourceSection:
    return SourceSection.model_validate(source)


def absolute_source(source: Source) -> SourceSection:
    """The source as another command, started elsewhere, can find it."""
    section = as_section(source)
    path = section.path
    if path == STDIN or _is_built_in(path) or is_hub_name(path) or is_url(path):
        return section
    return section.model_copy(update={"path": str(Path(path).expanduser().absolute())})


def read_evaluation_rows(source: str, split: str) -> Iterator[RawRow]:
    """All rows of an evaluation file or folder, of a Hub set those of `split`.

    Raises ConfigError for a folder of several splits: to take one by itself would pass over what is to be found.
    """
    found = found_files(source, None)
    yield from read_rows([source] if found is None else found.files, split)


def read_rows(sources: Sequence[Source], split: str) -> Iterator[RawRow]:
    """All rows of all sources in order. A row that cannot be read comes with its `problem` instead of a value."""
    for source_id, source in enumerate(sources):
        yield from read_source(source_id, source, split)


def read_source(source_id: int, source: Source, split: str, max_row_bytes: int = LONGEST_ROW) -> Iterator[RawRow]:
    """The rows of one source; `split` is read of a Hub data set, or a folder of several, that names none itself.

    A row of a file that takes over `max_row_bytes` has the problem too_long_text.
    """
    section = as_section(source)
    path = section.path
    if path == STDIN:
        yield from _as_rows(source_id, path, read_json_lines(sys.stdin.buffer, max_row_bytes))
    elif _is_built_in(path):
        yield from _read_tasks(source_id, path)
    elif is_hub_name(path):
        yield from _read_hub(source_id, section, section.split or split)
    else:
        for file in find_files(path, section.split, split).files:
            yield from _as_rows(source_id, file, read_file(file, max_row_bytes))


def found_files(source: Source, split: str | None) -> Found | None:
    """The files that are read of a source, and what is not; None for what is no file, folder or URL."""
    section = as_section(source)
    path = section.path
    if path == STDIN or _is_built_in(path) or is_hub_name(path):
        return None
    return find_files(path, section.split, split)


def first_row(source: Source, split: str) -> RawRow | None:
    """The first row that can be read; None when there is none. Raises ConfigError for stdin."""
    return next((row for _, row in first_rows(source, split) if row is not None), None)


def first_rows(source: Source, split: str) -> Iterator[tuple[str, RawRow | None]]:
    """Each file with its first row that can be read, to recognise schemas by; of what is no files, the one of all.

    Raises ConfigError for stdin, which cannot be read twice.
    """
    section = as_section(source)
    path = section.path
    if path == STDIN:
        raise ConfigError("the schema of stdin cannot be recognised before it is read", "name its map function")
    if _is_built_in(path) or is_hub_name(path):
        rows = {path: read_source(0, source, split)}
    else:
        rows = {file: _as_rows(0, file, read_file(file)) for file in find_files(path, section.split, split).files}
    for file, found in rows.items():
        yield file, next((row for row in found if row.value is not None), None)


def count_rows(sources: Sequence[Source], split: str) -> int | None:
    """How many rows `read_rows` will give, for a progress bar; None where counting would mean fetching them twice.

    Lines are counted without being parsed, which costs little beside encoding them.
    """
    total = 0
    for source in map(as_section, sources):
        path = source.path
        if _is_built_in(path):
            total += _task_numbers(path)[0]
        elif path == STDIN or is_url(path) or source.streaming:
            return None
        elif is_hub_name(path):
            total += len(_load_hub(source, source.split or split))
        else:
            total += sum(map(readers.count_rows, find_files(path, source.split, split).files))
    return total


def parse_json_row(source_id: int, file: str, line: int, data: bytes) -> RawRow:
    """One JSON line. Strict where `json` is lax: UTF-8, encodable text, an object, no key of it twice."""
    read = parse_json_line(line, data)
    return RawRow(source_id, file, read.number, read.value, read.problem, read.text)


def _as_rows(source_id: int, file: str, reads: Iterator[Read]) -> Iterator[RawRow]:
    for read in reads:
        yield RawRow(source_id, file, read.number, read.value, read.problem, read.text)


def _is_built_in(source: str) -> bool:
    return source.startswith(BUILT_IN)


def is_hub_name(source: str) -> bool:
    """`org/name`, and nothing of that name here, and no ending of a data file."""
    parts = source.split("/")
    return (
        len(parts) == 2
        and all(part and not part.startswith((".", "~")) for part in parts)
        and not source.endswith((*ENDINGS, ".gz", ".zst", ".txt"))
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
        yield RawRow(source_id, source, line, value, None, excerpt_of(value))


def _read_hub(source_id: int, source: SourceSection, split: str) -> Iterator[RawRow]:
    data_set = _load_hub(source, split)
    with _explained(source, split):
        for line, value in enumerate(data_set, 1):
            yield RawRow(source_id, source.path, line, dict(value), None, excerpt_of(value))


def _load_hub(source: SourceSection, split: str) -> Any:
    """The data set, downloaded once into the Hub's cache, or a stream of it."""
    from datasets import load_dataset

    optional: dict[str, Any] = {"name": source.subset, "revision": source.revision, "streaming": source.streaming}
    given = {key: value for key, value in optional.items() if value}
    with _explained(source, split), hub.asking():
        return load_dataset(source.path, split=split, **given)


@contextmanager
def _explained(source: SourceSection, split: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {source.revision}" if source.revision else ""
        raise RmcliError(
            f"data set {source.path} (split {split}{at}) cannot be had from the Hub: {reason}",
            "check the name and your access (hf auth login), or give local files: rmcli prepare FILE... --map-fn F",
        ) from error
