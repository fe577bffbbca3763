"""A suite's rows, scored: read by the first process, shared out among all of them, judged by the suite's rules."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rmcli import output
from rmcli.config.sections import Config, SourceSection
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.evaluate.suites.coverage import Coverage, figures
from rmcli.evaluate.suites.suite import Asked, Suite
from rmcli.lines import inputs
from rmcli.lines.team import scored
from rmcli.parallel import world
from rmcli.parallel.collectives import on_first
from rmcli.records import PreferenceGroup, RawRow
from rmcli.rows.files import LONGEST_ROW
from rmcli.scorer.scorer import Score, Scorer
from rmcli.scorer.tokens import encode_apart, written_alike
from rmcli.scorer.windows import characters_of, windows
from rmcli.tokens.encode import NOTED, Encoder

ROWS = 128  # scored together: few enough that several processes have a share of the smallest suite


@dataclass(frozen=True, slots=True)
class _Row:
    """A row to score, or why it is left out."""

    where: str
    asked: Asked | None = None
    group: PreferenceGroup | None = None
    problem: str | None = None
    detail: str | None = None


def evaluate_suite(
    config: Config, encoder: Encoder, scorer: Scorer, suite: Suite, source: SourceSection | None = None
) -> dict[str, Any]:
    """The suite's entry of metrics.json, read from `source` or, without one, from the Hub.

    Of several processes the first one reads, all score, and each gives the entry. Raises RmcliError where there is
    nothing to read or no row is of the suite, ConfigError for a prepared folder.
    """
    sources = suite.hub if source is None else (source,)
    total = count_rows(suite, source)
    rows = _rows(suite, sources, config.data.max_row_bytes) if world.is_first() else iter(())
    covered, noted = Coverage(), Counter[str]()
    with output.progress(f"scoring {suite.name}", total, "rows") as progress:
        shown = _Shown(progress)
        waiting = windows(rows, lambda row: characters_of(row.group), ROWS)
        for window, (found, odd) in scored(waiting, lambda window: _score(encoder, scorer, window, shown)):
            _take(covered, window, found)
            noted.update(odd)
            shown.reach(len(covered.judged) + covered.left_out.total())
    return on_first(lambda: _entry(suite, sources, covered, noted))


def count_rows(suite: Suite, source: SourceSection | None) -> int | None:
    """How many rows it will be, where that is known, on all processes; a data set of the Hub is fetched here.

    Raises RmcliError where there is nothing to read, ConfigError for a prepared folder.
    """
    return on_first(lambda: _count_from_hub(suite) if source is None else _count(suite, source))


def _entry(suite: Suite, sources: Sequence[SourceSection], covered: Coverage, noted: Counter[str]) -> dict[str, Any]:
    if not covered.judged:
        first = "it is empty" if covered.first_left_out is None else f"the first: {covered.first_left_out}"
        raise RmcliError(
            f"suite {suite.name}: no row of {sources[0].path} can be scored by it; {first}",
            "docs/suites.md has the columns that a suite's rows have",
        )
    found = figures(suite, covered) | {"noted": dict(noted)}
    for name, count in noted.items():
        output.warn(f"{suite.name}: {count:,} of {found['rows']['conversations']:,} conversations: {NOTED[name]}")
    if not found["complete"]:
        output.warn(f"{suite.name}: {found['not_official']}")
    table = suite.table(found)
    return {
        "suite": suite.name,
        "headline": found["headline"],
        "figures": found,
        "against": None,
        "table": {"columns": table.columns, "rows": table.rows},
    }


def _count(suite: Suite, source: SourceSection) -> int | None:
    if inputs.is_prepared(source.path):
        raise ConfigError(
            f"suite {suite.name}: {source.path} is prepared, and a suite is read as its authors publish it",
            f"--suite {suite.name}=FILE",
        )
    inputs.read_rows(source, LONGEST_ROW)  # raises at once
    return inputs.count_rows(source)


def _count_from_hub(suite: Suite) -> int:
    try:
        return sum(inputs.count_rows(source) or 0 for source in suite.hub)
    except RmcliError as error:
        hint = f"check the network and your access (hf auth login), or give a file: --suite {suite.name}=FILE"
        raise RmcliError(error.message, hint) from error


def _rows(suite: Suite, sources: Sequence[SourceSection], max_row_bytes: int) -> Iterator[_Row]:
    read = chain.from_iterable(inputs.read_rows(source, max_row_bytes) for source in sources)
    return (_row(suite, row) for row in read)


def _row(suite: Suite, row: RawRow) -> _Row:
    where = f"{row.file}:{row.line}"
    if row.value is None:
        return _Row(where, problem=row.problem or "wrong_type")
    try:
        asked, group = suite.group(row.value)
    except Skip as skip:
        return _Row(where, problem=skip.reason, detail=skip.detail)
    return _Row(where, asked, group)


class _Shown:
    """How far it is, in rows: those that this process scores as it does, those of others when they come in."""

    def __init__(self, progress: output.Progress) -> None:
        self._progress, self._done = progress, 0

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.advance(count)

    def reach(self, rows: int) -> None:
        self.advance(rows - self._done)


def _score(
    encoder: Encoder, scorer: Scorer, window: Sequence[_Row], shown: _Shown
) -> tuple[list[list[Score]], Counter[str]]:
    """The scores of each row's answers that is one of the suite, and what is odd of how many conversations."""
    groups = [row.group for row in window if row.group is not None]
    sides = encode_apart(encoder, groups)
    if (fault := written_alike(groups, sides)) is not None:
        raise fault
    odd = Counter(name for of_group in sides for side in of_group for name in getattr(side, "noted", ()))
    return scorer.score_sides(sides, shown.advance), odd


def _take(covered: Coverage, window: Sequence[_Row], found: Sequence[Sequence[Score]]) -> None:
    scores = iter(found)
    for row in window:
        if row.asked is None:
            covered.leave_out(str(row.problem), row.where, row.detail)
        else:
            covered.add(row.asked, next(scores), row.where)
