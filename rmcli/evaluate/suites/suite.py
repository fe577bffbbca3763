"""What a suite is, and what all of them read rows and count shares by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmcli.config.sections import SourceSection
from rmcli.errors import Skip
from rmcli.metrics.intervals import wilson_interval
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.fields import Row, assistant, kind_of, text, user

Figures = dict[str, Any]  # plain numbers, in JSON's types


@dataclass(frozen=True, slots=True)
class Asked:
    """What the rules need of a row, besides the scores of its answers.

    `part`: what the rules group by (a subset, domain or category). `counted`: the key of the suite's official counts
    under which the row falls, "" for none. `num_correct`: of the answers the first so many are right, the others
    wrong. `id`: the row's own.
    """

    part: str
    counted: str
    num_correct: int = 1
    id: str = ""


Judgement = tuple[Asked, Sequence[float]]  # a row and the score of each of its answers, in order


@dataclass(frozen=True)
class Table:
    """Figures for a terminal and a page. A cell is text or a number, and shares are in per cent."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Suite:
    """A public suite: where it is, what is asked of a row, and how scores become its figures.

    `hub`: what is read where no file is given, one source after the other. `official`: rows of the whole suite, by
    `Asked.counted`. `group`: a row's answers to be scored, the right ones first, without comparisons; raises Skip for
    a row that is not of the suite's schema. `rules`: the figures, `headline` among them, which is None where no row
    can tell; they are shares from 0 to 1. `table`: the figures as a table.
    """

    name: str
    title: str
    hub: tuple[SourceSection, ...]
    official: Mapping[str, int]
    group: Callable[[Row], tuple[Asked, PreferenceGroup]]
    rules: Callable[[Sequence[Judgement]], Figures]
    table: Callable[[Figures], Table]


def on_hub(name: str, split: str) -> SourceSection:
    return SourceSection.model_validate({"path": name, "split": split})


def group_of(prompt: str, answers: Sequence[str]) -> PreferenceGroup:
    """Each answer to the prompt, which is one user turn, as a conversation of its own."""
    return PreferenceGroup(tuple((*user(prompt), *assistant(answer)) for answer in answers), comparisons=())


def text_of(row: Row, name: str) -> str:
    """The text in a column. Raises Skip."""
    return text(_column(row, name), name)


def texts_of(row: Row, name: str) -> list[str]:
    """The texts in a column that is a list of them. Raises Skip."""
    value = _column(row, name)
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type", f"{name} is {kind_of(value)}, not a list")
    return [text(one, f"an entry of {name}") for one in value]


def known(name: str, value: str, allowed: Mapping[str, Any] | Sequence[str]) -> str:
    """The value, if the suite has it. Raises Skip."""
    if value not in allowed:
        raise Skip("unknown_subset", f"{name} is {brief(value)}")
    return value


def brief(value: Any) -> str:
    """The value as a message can hold it, however long it is."""
    return repr(value)[:40]


def share(right: Sequence[float]) -> Figures:
    """`rows`, and of them the `accuracy` with its 95 % `interval`; None without any row."""
    accuracy = mean(right)
    interval = None if accuracy is None else [*wilson_interval(accuracy, len(right))]
    return {"rows": len(right), "accuracy": accuracy, "interval": interval}


def mean(values: Sequence[float | None]) -> float | None:
    """The plain mean of the values that there are; None without any."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def pair_figures(judged: Sequence[Judgement]) -> dict[str, Figures]:
    """By part, in the order of appearance: rows of two answers, right where the first has the higher score."""
    right: dict[str, list[float]] = {}
    for asked, (first, second) in judged:
        right.setdefault(asked.part, []).append(float(first > second))
    return {part: share(values) for part, values in right.items()}


def tied_scores(judged: Sequence[Judgement]) -> int:
    """Rows of two answers that have one score: the suites count them as wrong."""
    return sum(first == second for _, (first, second) in judged)


def per_cent(share: float | None) -> float | str:
    """As a cell of a table."""
    return "-" if share is None else round(100 * share, 1)


def _column(row: Row, name: str) -> Any:
    if name not in row:
        raise Skip(f"missing_column {name}")
    return row[name]
