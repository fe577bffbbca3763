"""What is asked of an evaluation: the sets, by what to tell pairs apart, how many texts to look at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError
from rmcli.evaluate.suites.known import parse_suite
from rmcli.evaluate.suites.suite import Suite
from rmcli.lines.inputs import STDIN, is_prepared, parse_input
from rmcli.metrics.names import WORST
from rmcli.rows.map_fns.known import AUTO

OWN = ("source", "turns", "length_difference", "truncated")  # by what pairs are told apart without being asked
_OF_SET = ("name", "dataset_map_fn", "max_rows")  # keys of a set beside those of an input


@dataclass(frozen=True)
class Wanted:
    """`sets` are read by their own map function, or `map_fn`; `by` are columns of their rows. `suites` come with what
    they are read from, None for the Hub.

    `edited`: chosen answers of each set that are changed in form and scored again. `worst`: pairs shown as text.
    """

    sets: tuple[SourceSection, ...]
    suites: tuple[tuple[Suite, SourceSection | None], ...] = ()
    map_fn: str = AUTO
    by: tuple[str, ...] = ()
    edited: int = 50
    worst: int = WORST

    def as_options(self) -> dict[str, Any]:
        """As plain values: what several processes must agree on."""
        return {
            "sets": [one.model_dump() for one in self.sets],
            "suites": [
                (suite.name, None if source is None else source.model_dump()) for suite, source in self.suites
            ],
            **{name: getattr(self, name) for name in ("map_fn", "by", "edited", "worst")},
        }

    def map_fn_of(self, source: SourceSection) -> str | None:
        """None for a prepared folder, whose rows are mapped."""
        own = source.dataset_map_fn
        return own if is_prepared(source.path) else own or self.map_fn


def name_of(source: SourceSection) -> str:
    """What reports call a set: its name, or its file's without endings."""
    if source.name is not None:
        return source.name
    if source.path == STDIN:
        return "stdin"
    last = source.path.rstrip("/").rsplit("/", 1)[-1]
    return (last.split(".")[0] if "/" in source.path or Path(source.path).exists() else "") or source.path


def wanted(
    sets: Sequence[str],
    suites: Sequence[str],
    map_fn: str | None,
    by: Sequence[str],
    edited: int | None,
    is_compared: bool,
    is_shared: bool,
) -> Wanted:
    """What the options ask for; `is_compared` with another model, `is_shared` among processes.

    Raises ConfigError where nothing is asked for, for sets of one name, suites that are none, columns that cannot be
    told apart by, and stdin where it must be read twice or by several.
    """
    if not sets and not suites:
        raise ConfigError("nothing to evaluate on", "give a preference set or a --suite: rmcli evaluate MODEL SET")
    sources = tuple(parse_input(text, _OF_SET) for text in sets)
    names = [name_of(source) for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two sets are called {name}", "name them: path=FILE,name=NAME")
    for column in by:
        if column in OWN:
            raise ConfigError(f"--by {column}: pairs are told apart by {column} without being asked", "leave it out")
    for source in sources:
        if source.path == STDIN and (len(sources) > 1 or is_shared):
            raise ConfigError("stdin is read once, and by one process", "give a file")
        if is_compared and _is_read_once(source.path):
            raise ConfigError(f"--against reads {source.path} twice, and it can be read once", "give a file")
        if by and is_prepared(source.path):
            raise ConfigError(
                f"--by {by[0]}: {source.path} is prepared and has no columns", "give what it was prepared from"
            )
        if map_fn not in (None, AUTO) and is_prepared(source.path):
            raise ConfigError(f"--map-fn {map_fn}: {source.path} is prepared, its rows are mapped", "leave it out")
    asked = Wanted(sources, tuple(map(parse_suite, dict.fromkeys(suites))), map_fn or AUTO, tuple(dict.fromkeys(by)))
    return asked if edited is None else replace(asked, edited=edited)


def _is_read_once(path: str) -> bool:
    """stdin, or a pipe."""
    there = Path(path)
    return path == STDIN or (there.exists() and not there.is_file() and not there.is_dir())
