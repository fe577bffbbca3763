"""Lines in: conversations, pairs and answers to score, from JSON lines and from every file that `prepare` reads."""

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.records import PreferenceGroup
from rmcli.rows import readers
from rmcli.rows.files import ENDINGS, LONGEST_ROW, Read, bounded_lines, is_url, open_bytes, read_lines
from rmcli.rows.json_files import parse_json_line
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.rows.map_fns.cells import has_text_cells
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import AUTO, NAMED, recognise
from rmcli.scorer import conversations

STDIN = "-"
# The columns that a row of ours is made of. All others are the user's own and come back with the score.
_RANKED_BY = ("ranks", "scores", "comparisons")
_OF_PAIRS = ("chosen", "rejected", "label", "margin", "weight")
_BESIDE = ("system", "history", "tools", "chat_template_kwargs")
_READ = frozenset(("messages", "prompt", "response", "responses", *_OF_PAIRS, *_RANKED_BY, *_BESIDE))


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be scored of one line, or the `problem` why nothing is.

    `form` is what the scores are written as: `score` of one conversation, `scores` of K answers, or a `pair`.
    `kept`: the columns that are the user's own, such as `id`.
    """

    group: PreferenceGroup | None
    problem: str | None = None
    form: Literal["score", "scores", "pair"] = "score"
    kept: Mapping[str, Any] = field(default_factory=dict)


def read(source: str, map_fn: str | None, contract: Contract, max_row_bytes: int = LONGEST_ROW) -> Iterator[Line]:
    """The lines of a file, a URL or stdin ("-"), each as `map_fn` reads it, or by the names of its columns.

    `contract` says what a row must keep to, and notes message keys that the chat template does not read. Raises
    RmcliError at once where there is nothing to read, or nothing by that map function.
    """
    text_cells = has_text_cells(source)
    function, rows = _choose(map_fn, _rows(source, max_row_bytes), text_cells)
    return map(_Reader(source, function, contract, text_cells).line, rows)


def count(source: str) -> int | None:
    """How many lines `read` gives; None where they cannot be counted without reading them."""
    if source == STDIN or is_url(source) or not Path(source).is_file():
        return None
    if not _in_lines(source):
        return readers.count_rows(source)
    with open_bytes(source) as file:
        return sum(1 for _ in file)


def _rows(source: str, max_row_bytes: int) -> Iterator[Read]:
    if source == STDIN:
        if sys.stdin.isatty():
            output.say("reading JSON lines from stdin; Ctrl-D ends them")
        return _rows_of_lines(bounded_lines(sys.stdin.buffer, max_row_bytes), max_row_bytes)
    path = Path(source)
    hint = "give a file (.jsonl, .json, .csv, .parquet, .arrow), or - for stdin"
    if path.is_dir():
        raise RmcliError(f"input {source} is a folder", hint)
    if not is_url(source) and not path.exists():
        raise RmcliError(f"input {source}: no such file", hint)
    if not _in_lines(source):
        return readers.read_file(source, max_row_bytes)
    return _rows_of_lines(read_lines(path, max_row_bytes), max_row_bytes)


def _in_lines(source: str) -> bool:
    """Whether each line of the file is a row of its own. A file of another ending is taken to be JSON lines."""
    if not source.endswith(ENDINGS) or ".jsonl" in Path(source).suffixes:
        return True
    if ".json" not in Path(source).suffixes:
        return False
    with open_bytes(source) as file:
        first = next((line for line in file if line.removeprefix(BOM_UTF8).strip()), b"")
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


def _choose(map_fn: str | None, rows: Iterator[Read], text_cells: bool) -> tuple[MapFunction | None, Iterator[Read]]:
    """The map function, and the rows again: `auto` looks at those before the first that can be read."""
    if map_fn is None:
        return None, rows
    if map_fn == AUTO:
        seen = []
        for row in rows:
            seen.append(row)
            if row.value is not None:
                break
        rows = chain(seen, rows)
        if not seen or seen[-1].value is None:
            return None, rows
        name = recognise(seen[-1].value, text_cells)
        output.say(f"map function {name}, recognised by the columns {', '.join(seen[-1].value)}")
        map_fn = name
    function = find_map_function(map_fn)
    if function.rows_key is not None:
        raise ConfigError(
            f"--map-fn {map_fn} puts several rows together, and score gives one result per row",
            "without --map-fn rows of {prompt, response} are scored one by one",
        )
    return function, rows


@dataclass(frozen=True)
class _Reader:
    """How the rows of one source become lines: by a map function, or by the names of their columns."""

    source: str
    function: MapFunction | None
    contract: Contract
    text_cells: bool

    def line(self, row: Read) -> Line:
        if row.value is None:
            return Line(None, row.problem or "wrong_type")
        read_here = _READ if self.function is None else _READ.union(self.function.columns)
        kept = {column: value for column, value in row.value.items() if column not in read_here}
        where = f"{self.source}:{row.number}"
        try:
            if self.function is not None:
                return _labelled(self._apply(self.function, row.value, where), kept)
            return self._by_columns(row.value, kept, where)
        except Skip as skip:
            return Line(None, skip.reason, kept=kept)

    def _by_columns(self, row: Mapping[str, Any], kept: dict[str, Any], where: str) -> Line:
        if "messages" in row:
            whole = conversations.whole(row, where, self.contract, self.text_cells)
            return Line(whole, form="score", kept=kept)
        if row.get("responses") is not None and all(row.get(name) is None for name in _RANKED_BY):
            return Line(self._unlabelled(row, row["responses"], where), form="scores", kept=kept)
        if row.get("response") is not None and row.get("responses") is None and row.get("chosen") is None:
            return Line(self._unlabelled(row, [row["response"]], where), form="score", kept=kept)
        return _labelled(self._apply(NAMED["canonical"], row, where), kept)

    def _unlabelled(self, row: Mapping[str, Any], responses: Any, where: str) -> PreferenceGroup:
        return conversations.unlabelled(row, responses, where, self.contract, self.text_cells)

    def _apply(self, function: MapFunction, row: Mapping[str, Any], where: str) -> PreferenceGroup:
        return apply(function, dict(row), where, best_first=False, contract=self.contract, text_cells=self.text_cells)


def _labelled(group: PreferenceGroup, kept: dict[str, Any]) -> Line:
    return Line(group, form="pair" if len(group.conversations) == 2 else "scores", kept=kept)
