"""Two runs on the same held-out pairs: the difference of their accuracies, paired."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from rmcli.errors import RmcliError
from rmcli.metrics.intervals import paired_bootstrap
from rmcli.metrics.judged import right
from rmcli.metrics.names import EVALUATION_FILE, MARGINS_FILE
from rmcli.report.run_folder import Run
from rmcli.report.values import mapping, number

_Key = tuple[int, int, int]  # row, and which two of its answers
_MOST_RUNS = 6  # of more each is compared with the first alone: pairs of runs grow with the square


@dataclass(frozen=True)
class Difference:
    """Of one set, or why there is none. `ours`, `theirs`: accuracy on the `pairs` that both have.

    `not_compared`: pairs that only one of them has, or that one has no finite margin of. `unread`: lines of both
    files that hold no pair.
    """

    set: str
    why_not: str = ""
    pairs: int = 0
    ours: float = 0.0
    theirs: float = 0.0
    found: Mapping[str, Any] | None = None  # what paired_bootstrap gives
    not_compared: int = 0
    unread: int = 0


@dataclass(frozen=True)
class _Margins:
    """Of one run: by set and pair, None where it was not finite; how many lines hold no pair."""

    by_set: Mapping[str, Mapping[_Key, float | None]] = field(default_factory=dict)
    unread: int = 0


def compared(letters: Sequence[str]) -> list[tuple[str, str]]:
    """Which runs are compared with which."""
    if len(letters) > _MOST_RUNS:
        return [(letters[0], other) for other in letters[1:]]
    return [*combinations(letters, 2)]


def not_all_compared(letters: Sequence[str]) -> str:
    """The sentence that says so; empty where each is compared with each."""
    if len(letters) <= _MOST_RUNS:
        return ""
    return f"Of more than {_MOST_RUNS} runs each is compared with the first alone: {letters[0]}."


def all_differences(runs: Mapping[str, Run]) -> Iterator[tuple[str, str, Difference]]:
    """By two letters, of the runs that are compared. Each file is read once."""
    margins = {letter: _margins(run) for letter, run in runs.items()}
    for one, other in compared([*runs]):
        for found in _differences(runs[one], runs[other], margins[one], margins[other]):
            yield one, other, found


def paired_differences(ours: Run, theirs: Run) -> list[Difference]:
    """By set, of all pairs that both runs judged at their end; one that says why where there is nothing to pair."""
    return [found for _, _, found in all_differences({"ours": ours, "theirs": theirs})]


def _differences(ours: Run, theirs: Run, mine: _Margins, other: _Margins) -> list[Difference]:
    if why := _why_not(ours) or _why_not(theirs):
        return [Difference("", why)]
    unread = mine.unread + other.unread
    found = [
        Difference(name, why)
        if (why := _another_set(ours, theirs, name))
        else replace(_difference(name, mine.by_set[name], other.by_set[name]), unread=unread)
        for name in mine.by_set
        if name in other.by_set
    ]
    return found or [Difference("", "they judged no set of the same name", unread=unread)]


def _why_not(run: Run) -> str:
    if not run.is_run:
        return f"{run.path} is an evaluation, which keeps no margins of single pairs: rmcli evaluate --against"
    if not (run.path / MARGINS_FILE).is_file():
        return f"{run.path} has no {MARGINS_FILE}, which a training writes at its end"
    if run.metrics is None:
        return f"{run.path} has no {EVALUATION_FILE} of its last evaluation, without which {MARGINS_FILE} is left out"
    return ""


def _another_set(ours: Run, theirs: Run, name: str) -> str:
    """Why the set of this name is not the same for both; empty where it is."""
    one, other = (_identity(run, name) for run in (ours, theirs))
    if one is None or one != other:
        return f"their data is not the same: {one or 'unknown'} and {other or 'unknown'}"
    return ""


def _identity(run: Run, name: str) -> str | None:
    """Of a set with a name what run.json says of it, else of the training data that the pairs were held out from."""
    sets = mapping(run.told.get("eval_sets"))
    found = mapping(sets[name]).get("set") if name in sets else run.data.get("manifest_sha256")
    return found if isinstance(found, str) else None


def _margins(run: Run) -> _Margins:
    """Of a run that has them."""
    if _why_not(run):
        return _Margins()
    found: dict[str, dict[_Key, float | None]] = {}
    unread = 0
    try:
        with (run.path / MARGINS_FILE).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    one = json.loads(line)
                    key = (int(one["row_id"]), int(one["first"]), int(one["second"]))
                    found.setdefault(str(one["set"]), {})[key] = number(one["margin"])
                except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                    unread += 1
    except OSError as error:
        raise RmcliError(f"{run.path / MARGINS_FILE} cannot be read: {error.strerror or error}") from error
    return _Margins(found, unread)


def _difference(name: str, ours: Mapping[_Key, float | None], theirs: Mapping[_Key, float | None]) -> Difference:
    shared = ours.keys() & theirs.keys()
    if not shared:
        return Difference(name, "they have no pair in common", not_compared=len(ours) + len(theirs))
    both = {key: (ours[key], theirs[key]) for key in shared if ours[key] is not None and theirs[key] is not None}
    left_out = len(ours.keys() | theirs.keys()) - len(both)
    if not both:
        return Difference(name, "scores were not finite: of no pair do both have a margin", not_compared=left_out)
    keys = sorted(both)
    mine, other = (right(np.array([both[key][which] for key in keys], np.float64)) for which in (0, 1))
    found = paired_bootstrap(mine, other, np.array([key[0] for key in keys], np.int64))
    return Difference(name, "", len(keys), float(mine.mean()), float(other.mean()), found, left_out)
