"""Lines in: conversations, pairs and answers to score, from JSON lines and from every file that `prepare` reads."""

import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.records import PreferenceGroup
from rmcli.rows import readers
from rmcli.rows.files import ENDINGS, Read, is_url, open_bytes, read_lines
from rmcli.rows.json_files import parse_json_line
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import AUTO, NAMED, recognise

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


def read(source: str, map_fn: str | None = None) -> Iterator[Line]:
    """The lines of a file, a URL or stdin ("-"), each as `map_fn` reads it, or by the names of its columns.

    Raises RmcliError at once where there is nothing to read, or nothing by that map function.
    """
    rows = _rows(source)
    function, rows = _choose(map_fn, rows)
    return (_line(row, function, source) for row in rows)


def count(source: str) -> int | None:
    """How many lines `read` gives; None where they cannot be counted without reading them."""
    if source == STDIN or is_url(source) or not Path(source).is_file():
        return None
    if not _in_lines(source):
        return readers.count_rows(source)
    with open_bytes(source) as file:
        return sum(1 for _ in file)


def _rows(source: str) -> Iterator[Read]:
    if source == STDIN:
        if sys.stdin.isatty():
            output.say("reading JSON lines from stdin; Ctrl-D ends them")
        return _rows_of_lines(sys.stdin.buffer)
    path = Path(source)
    hint = "give a file (.jsonl, .json, .csv, .parquet, .arrow), or - for stdin"
    if path.is_dir():
        raise RmcliError(f"input {source} is a folder", hint)
    if not is_url(source) and not path.exists():
        raise RmcliError(f"input {source}: no such file", hint)
    return _rows_of_lines(read_lines(Path(source))) if _in_lines(source) else readers.read_file(source)


def _in_lines(source: str) -> bool:
    """Whether each line of the file is a row of its own. A file of another ending is taken to be JSON lines."""
    if not source.endswith(ENDINGS) or ".jsonl" in Path(source).suffixes:
        return True
    if ".json" not in Path(source).suffixes:
        return False
    with open_bytes(source) as file:
        first = next((line for line in file if line.removeprefix(BOM_UTF8).strip()), b"")
    return not first.removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _rows_of_lines(lines: Iterable[bytes]) -> Iterator[Read]:
    """One row per line, whatever the line. A message list alone stands for its conversation."""
    for number, line in enumerate(lines, 1):
        data = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not data.strip():
            yield Read(number, None, "empty_line", "")
            continue
        row = parse_json_line(number, data)
        if row.problem == "wrong_type" and data.lstrip().startswith(b"["):
            row = Read(number, {"messages": json.loads(data)}, None, row.text)
        yield row


def _choose(map_fn: str | None, rows: Iterator[Read]) -> tuple[MapFunction | None, Iterator[Read]]:
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
        name = recognise(seen[-1].value)
        output.say(f"map function {name}, recognised by the columns {', '.join(seen[-1].value)}")
        map_fn = name
    function = find_map_function(map_fn)
    if function.rows_key is not None:
        raise ConfigError(
            f"--map-fn {map_fn} puts several rows together, and score gives one result per row",
            "without --map-fn rows of {prompt, response} are scored one by one",
        )
    return function, rows


def _line(row: Read, function: MapFunction | None, source: str) -> Line:
    if row.value is None:
        return Line(None, row.problem or "wrong_type")
    read_here = _READ if function is None else _READ.union(function.columns)
    kept = {column: value for column, value in row.value.items() if column not in read_here}
    where = f"{source}:{row.number}"
    try:
        if function is not None:
            return _labelled(apply(function, row.value, where, best_first=False), kept)
        return _by_columns(row.value, kept, where)
    except Skip as skip:
        return Line(None, skip.reason, kept=kept)


def _by_columns(row: Mapping[str, Any], kept: dict[str, Any], where: str) -> Line:
    if "messages" in row:
        if not isinstance(row["messages"], list | tuple):
            raise Skip("wrong_type")
        whole = {column: value for column, value in row.items() if column not in ("messages", "prompt")}
        return Line(_unlabelled(whole, [row["messages"]], where), form="score", kept=kept)
    if row.get("responses") is not None and all(row.get(name) is None for name in _RANKED_BY):
        return Line(_unlabelled(row, row["responses"], where), form="scores", kept=kept)
    if row.get("response") is not None and row.get("responses") is None and row.get("chosen") is None:
        return Line(_unlabelled(row, [row["response"]], where), form="score", kept=kept)
    return _labelled(apply(NAMED["canonical"], row, where, best_first=False), kept)


def _labelled(group: PreferenceGroup, kept: dict[str, Any]) -> Line:
    return Line(group, form="pair" if len(group.conversations) == 2 else "scores", kept=kept)


def _unlabelled(row: Mapping[str, Any], responses: Any, where: str) -> PreferenceGroup:
    """Answers of which nothing is known: the canonical schema's, all of one rank and then without it.

    So whatever that schema reads beside the answers is read here too, and what it refuses is refused.
    """
    if not isinstance(responses, Sequence) or isinstance(responses, str) or not responses:
        raise Skip("wrong_type")
    several = list(responses) if len(responses) > 1 else [*responses, *responses]
    ours = {column: value for column, value in row.items() if column != "response"}
    equal = {**ours, "responses": several, "ranks": [1] * len(several)}
    group = apply(NAMED["canonical"], equal, where, best_first=False)
    return replace(group, conversations=group.conversations[: len(responses)], comparisons=())
