"""Rows to score: of a file, a folder, a URL, a Hub data set or stdin, one after the other, never held together."""

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

from rmcli import output
from rmcli.config.resolve import parse_source
from rmcli.config.sections import OPTION_OF_SOURCE, SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.packs.manifest import MANIFEST, REJECTS
from rmcli.records import RawRow
from rmcli.rows import readers, sources
from rmcli.rows.files import ENDINGS, Read, bounded_lines, is_url, open_bytes
from rmcli.rows.folders import find_files
from rmcli.rows.json_files import parse_json_line
from rmcli.rows.sources import as_section

STDIN = sources.STDIN
SPLIT = "train"  # of a Hub data set or a folder of several, where none is named
_OPTIONAL = ("split", "subset", "revision", "streaming")
_OF_INPUT = {"path", *_OPTIONAL}


def parse_input(text: str, also: Collection[str] = ()) -> SourceSection:
    """The input as a source: a name as it stands, or `path=NAME,split=test,subset=S,revision=R`.

    `also`: further keys that are read. Raises ConfigError for keys that are none, or not of an input.
    """
    if not text.startswith("path="):
        return as_section(text)
    source = parse_source(text, "input")
    for key in sorted(source.model_fields_set - _OF_INPUT.union(also)):
        read = ", ".join(OPTION_OF_SOURCE.get(one, one) for one in ("path", *_OPTIONAL, *also))
        raise ConfigError(f"input {text!r}: {OPTION_OF_SOURCE.get(key, key)} is for prepare", f"read are {read}")
    return source


def read_rows(source: SourceSection, max_row_bytes: int) -> Iterator[RawRow]:
    """All rows in order; one that cannot be read comes with its `problem`.

    Every line of JSON lines is a row, an empty one too. Raises RmcliError at once where there is nothing to read.
    """
    path = source.path
    if path == STDIN:
        if sys.stdin.isatty():
            output.say("reading JSON lines from stdin; Ctrl-D ends them")
        return _named(path, _rows_of_lines(bounded_lines(sys.stdin.buffer, max_row_bytes), max_row_bytes))
    if _is_no_file(source):
        return sources.read_source(0, source, SPLIT, max_row_bytes)
    return chain.from_iterable(_named(file, _rows_of_file(file, max_row_bytes)) for file in _files(source))


def count_rows(source: SourceSection) -> int | None:
    """How many rows `read_rows` gives; None where they cannot be counted without reading them."""
    path = source.path
    if path == STDIN or is_url(path):
        return None
    if _is_no_file(source):
        return sources.count_rows([source], SPLIT)
    if not Path(path).is_file() and not Path(path).is_dir():  # a pipe is read once
        return None
    return sum(map(_count, _files(source, say=False)))


def files_read(source: SourceSection) -> list[str]:
    """What must not be written: the input, and of a folder the files in it."""
    path = source.path
    is_folder = path != STDIN and not is_url(path) and Path(path).is_dir()
    return [path, *(_files(source, say=False) if is_folder and not is_prepared(path) else ())]


def is_prepared(path: str) -> bool:
    """Whether `rmcli prepare` wrote this folder, as its manifest says."""
    return path != STDIN and (Path(path) / MANIFEST).is_file() and (Path(path) / REJECTS).is_file()


def _is_no_file(source: SourceSection) -> bool:
    return source.path.startswith(sources.BUILT_IN) or sources.is_hub_name(source.path)


def _files(source: SourceSection, say: bool = True) -> list[str]:
    """What the path stands for. A file is read whatever its ending: as JSON lines where it has none that is known."""
    path = source.path
    if not is_url(path) and not Path(path).exists():
        raise RmcliError(
            f"input {path}: no such file",
            "give a file (.jsonl, .json, .csv, .parquet, .arrow), a folder, a Hub data set (org/name) or - for stdin",
        )
    is_folder = not path.endswith(ENDINGS) if is_url(path) else Path(path).is_dir()
    if not is_folder:
        return [path]
    found = find_files(path, source.split, SPLIT)
    if say:
        found.say(path)
    return found.files


def _named(file: str, reads: Iterable[Read]) -> Iterator[RawRow]:
    return (RawRow(0, file, read.number, read.value, read.problem, read.text) for read in reads)


def _rows_of_file(file: str, max_row_bytes: int) -> Iterator[Read]:
    if not _in_lines(file):
        return readers.read_file(file, max_row_bytes)
    return _rows_of_lines(_lines_of(file, max_row_bytes), max_row_bytes)


def _lines_of(file: str, limit: int) -> Iterator[bytes]:
    with open_bytes(file) as opened:
        yield from bounded_lines(opened, limit)


def _count(file: str) -> int:
    if not _in_lines(file):
        return readers.count_rows(file)
    with open_bytes(file) as opened:
        return sum(1 for _ in opened)


def _in_lines(file: str) -> bool:
    """Whether each line of the file is a row of its own. A file of another ending is taken to be JSON lines."""
    if not file.endswith(ENDINGS) or ".jsonl" in Path(file).suffixes:
        return True
    if ".json" not in Path(file).suffixes:
        return False
    with open_bytes(file) as opened:
        first = next((line for line in opened if line.removeprefix(BOM_UTF8).strip()), b"")
    return not first.removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _rows_of_lines(lines: Iterable[bytes], limit: int) -> Iterator[Read]:
    """One row per line, whatever the line. A message list alone stands for its conversation."""
    for number, line in enumerate(lines, 1):
        data = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not data.strip():
            yield Read(number, None, "empty_line", "")
            continue
        row = parse_json_line(number, data, limit)
        if row.problem == "wrong_type" and data.lstrip().startswith(b"["):
            row = Read(number, {"messages": json.loads(data)}, None, row.text)
        yield row
