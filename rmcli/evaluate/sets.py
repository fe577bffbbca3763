"""Preference sets scored by one model: each read line by line, of which little is kept."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rmcli import output
from rmcli.config.sections import Config, SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.evaluate.gathered import Gathered
from rmcli.evaluate.sample import Sample
from rmcli.evaluate.wanted import Wanted, name_of
from rmcli.evaluate.worst import Worst
from rmcli.lines.inputs import is_prepared
from rmcli.lines.of_input import lines_of
from rmcli.lines.read import Line
from rmcli.lines.scoring import score_lines
from rmcli.lines.team import scored
from rmcli.packs.manifest import read_manifest
from rmcli.parallel import world
from rmcli.records import TokenGroup
from rmcli.rows.map_fns.contract import Contract
from rmcli.scorer.scorer import Scored, Scorer
from rmcli.scorer.windows import WINDOW, characters_of, windows
from rmcli.tokens.encode import Encoder


@dataclass(frozen=True)
class Opened:
    """A set that can be read: its lines, how many they are where that is known, and what its rows must keep to."""

    source: SourceSection
    lines: Iterator[Line]
    total: int | None
    contract: Contract


def open_set(config: Config, encoder: Encoder, source: SourceSection, wanted: Wanted) -> Opened:
    """Before a model is loaded: raises RmcliError where there is nothing to read, or nothing by that map function.

    On other processes than the first it has no lines.
    """
    contract = Contract(encoder.template_reads.message_keys, config.data.allow_no_prompt)
    if not world.is_first():
        return Opened(source, iter(()), None, contract)
    columns = ("source", *wanted.by)
    read = source.model_copy(update={"name": None, "dataset_map_fn": None, "max_rows": None})
    lines, total = lines_of(config, read, wanted.map_fn_of(source), contract, encoder, columns=columns)
    most = source.max_rows
    total = total if most is None or total is None else min(most, total)
    return Opened(source, islice(lines, most), total, contract)


def gather(scorer: Scorer, opened: Opened, wanted: Wanted) -> Gathered:
    """All comparisons of a set, scored. All processes call it; the first one has the result.

    Raises ConfigError for a column that none of the first rows has.
    """
    source = opened.source
    gathered = Gathered(_source_of(source), wanted.by, Worst(wanted.worst), Sample(wanted.edited))
    with output.progress(name_of(source), opened.total, "lines") as progress:

        def score(window: list[Line]) -> list[Scored | str]:
            return score_lines(scorer, window, progress.advance)

        for window, found in scored(windows(opened.lines, _characters, WINDOW), score):
            if not gathered.keys:
                _check_columns(window, wanted, source)
            gathered.add(window, found)
    if world.is_first():
        opened.contract.report_keys(source.path)
        for reason, count in gathered.errors.most_common():
            output.warn(f"{name_of(source)}: {count:,} of {gathered.lines:,} lines have no figure: {reason}")
        if not gathered.sample.held and is_prepared(source.path) and wanted.edited:
            output.say(f"{name_of(source)} is tokens alone: turns and format bias are not measured")
    return gathered


def _characters(line: Line) -> int:
    return line.group.num_tokens if isinstance(line.group, TokenGroup) else characters_of(line.group)


def _source_of(source: SourceSection) -> Callable[[Line], str]:
    """Of a prepared folder what it was prepared from, of a file its name."""
    if not is_prepared(source.path):
        return lambda line: line.where.rpartition(":")[0].rpartition("/")[2] or line.where
    labels = [SourceSection.model_validate(one).label for one in read_manifest(Path(source.path))["sources"]]
    return lambda line: labels[line.group.source_id] if isinstance(line.group, TokenGroup) else ""


def _check_columns(window: list[Line], wanted: Wanted, source: SourceSection) -> None:
    """Before much is scored: a column that none of the first rows has is mistyped."""
    good = [line for line in window if line.group is not None]
    for column in wanted.by:
        if good and not any(column in line.columns for line in good):
            there = dict.fromkeys(name for line in good for name in line.kept)
            raise ConfigError(
                f"--by {column}: none of the first {len(good):,} rows of {source.label} has such a column",
                f"columns that are not read are {', '.join(there)}" if there else None,
            )


def why_nothing(gathered: Gathered, source: SourceSection) -> str | None:
    """The cause, where a set says of no two answers which one is better."""
    if gathered.keys:
        return None
    if not gathered.errors:
        return f"{source.label}: all {gathered.lines:,} lines call their answers equally good"
    reason, count = gathered.errors.most_common(1)[0]
    first = f"; the first is {gathered.first_error}" if gathered.first_error else ""
    return f"{source.label}: nothing to compare in {gathered.lines:,} lines: {count:,} {reason}{first}"


def check_measured(not_measured: Collection[str]) -> None:
    """Raises RmcliError with what `why_nothing` says of one or more sets."""
    if not_measured:
        raise RmcliError(
            "; ".join(not_measured),
            "docs/format.md says what the reasons mean; rmcli map-fns has the map functions",
        )
