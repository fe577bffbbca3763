"""Lines in: conversations, pairs and answers to score, by the names of their columns or by a map function."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal

from rmcli import output
from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError, Skip
from rmcli.lines.answers import ANSWER, answered
from rmcli.lines.inputs import read_rows
from rmcli.records import PreferenceGroup, RawRow, TokenGroup
from rmcli.rows.files import LONGEST_ROW
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.rows.map_fns.cells import has_text_cells
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import AUTO, NAMED, recognise
from rmcli.rows.sources import as_section
from rmcli.scorer import conversations

# The columns that a row of ours is made of. All others are the user's own and come back with the score.
_RANKED_BY = ("ranks", "scores", "comparisons")
_OF_PAIRS = ("chosen", "rejected", "label", "margin", "weight")
_BESIDE = ("system", "history", "tools", "chat_template_kwargs")
_READ = frozenset(("messages", "prompt", "response", "responses", *_OF_PAIRS, *_RANKED_BY, *_BESIDE))


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be scored of one line, or the `problem` why nothing is.

    `form` is what the scores are written as: `score` of one conversation, `scores` of K answers, or a `pair`.
    `kept`: the columns that are the user's own, such as `id`. `columns`: those that were asked for, read or not.
    `where`: its file and line. `digest`: of the row.
    """

    group: PreferenceGroup | TokenGroup | None
    problem: str | None = None
    form: Literal["score", "scores", "pair"] = "score"
    kept: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    digest: bytes = b""


def read(
    source: str | SourceSection,
    map_fn: str | None,
    contract: Contract,
    max_row_bytes: int = LONGEST_ROW,
    skip: int = 0,
    columns: Collection[str] = (),
) -> Iterator[Line]:
    """The lines of an input, each as `map_fn` reads it, or by the names of its columns; the first `skip` come unread.

    `contract` says what a row must keep to, and notes message keys that the chat template does not read. `columns`:
    those of the rows that lines are to have as they are. Raises RmcliError at once where there is nothing to read, or
    nothing by that map function.
    """
    section = as_section(source)
    function, rows = _choose(map_fn, read_rows(section, max_row_bytes))
    reader = _Reader(function, contract, columns)
    return chain((Line(None, digest=_digest(row)) for row in islice(rows, skip)), map(reader.line, rows))


def _digest(row: RawRow) -> bytes:
    """What a row is told from others by: its values, or why it has none."""
    told = [row.problem, row.text if row.value is None else row.value]
    return hashlib.blake2b(json.dumps(told, default=str).encode("ascii"), digest_size=16).digest()


def _choose(map_fn: str | None, rows: Iterator[RawRow]) -> tuple[MapFunction | None, Iterator[RawRow]]:
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
        name = recognise(seen[-1].value, has_text_cells(seen[-1].file))
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
    """How rows become lines: by a map function, or by the names of their columns."""

    function: MapFunction | None
    contract: Contract
    columns: Collection[str]

    def line(self, row: RawRow) -> Line:
        where, digest = f"{row.file}:{row.line}", _digest(row)
        if row.value is None:
            return Line(None, row.problem or "wrong_type", where=where, digest=digest)
        asked = {column: row.value[column] for column in self.columns if column in row.value}
        line = self._line(row.value, where, has_text_cells(row.file))
        return replace(line, columns=asked, where=where, digest=digest)

    def _line(self, row: Mapping[str, Any], where: str, text_cells: bool) -> Line:
        read_here = _READ if self.function is None else _READ.union(self.function.columns)
        try:
            found = answered(row, text_cells) if self.function is None else None
        except Skip as skip:
            return Line(None, skip.reason, kept=_not_in(read_here, row))
        if found is not None:
            row, read_here = found.row, read_here | found.read
        kept = _not_in(read_here, row)
        try:
            if self.function is not None:
                return _labelled(self._apply(self.function, row, where, text_cells), kept)
            if found is not None and _has_no_ranks(row):
                group = conversations.unlabelled(row, row["responses"], where, self.contract, text_cells)
                return Line(group, form="scores", kept=kept)
            return self._by_columns(row, kept, where, text_cells)
        except Skip as skip:
            return Line(None, skip.reason, kept=kept)

    def _by_columns(self, row: Mapping[str, Any], kept: dict[str, Any], where: str, text_cells: bool) -> Line:
        if "messages" in row:
            whole = conversations.whole(row, where, self.contract, text_cells)
            return Line(whole, form="score", kept=kept)
        column = next((name for name in ANSWER if row.get(name) is not None), None)
        if column is not None and row.get("responses") is None and row.get("chosen") is None:
            rest = {name: value for name, value in row.items() if name != column}
            one = conversations.unlabelled(rest, [row[column]], where, self.contract, text_cells)
            rest = {name: value for name, value in kept.items() if name != column}
            return Line(one, form="score", kept=rest)
        return _labelled(self._apply(NAMED["canonical"], row, where, text_cells), kept)

    def _apply(self, function: MapFunction, row: Mapping[str, Any], where: str, text_cells: bool) -> PreferenceGroup:
        return apply(function, dict(row), where, best_first=False, contract=self.contract, text_cells=text_cells)


def _has_no_ranks(row: Mapping[str, Any]) -> bool:
    """Whether nothing says which of the answers is better: with ranks they are a labelled group."""
    return all(row.get(name) is None for name in _RANKED_BY)


def _not_in(read: frozenset[str], row: Mapping[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in read}


def _labelled(group: PreferenceGroup, kept: dict[str, Any]) -> Line:
    return Line(group, form="pair" if len(group.conversations) == 2 else "scores", kept=kept)
