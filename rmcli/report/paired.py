"""Two runs on the same held-out pairs: the difference of their accuracies, paired."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmcli.metrics.intervals import paired_bootstrap
from rmcli.metrics.judged import right
from rmcli.report.run_folder import Run
from rmcli.report.values import mapping, number

FILE = "eval_margins.jsonl"
_Key = tuple[int, int, int]  # row, and which two of its answers
_Margins = Mapping[str, Mapping[_Key, float]]  # by set


@dataclass(frozen=True)
class Difference:
    """Of one set, or why there is none. `ours`, `theirs`: accuracy on the `pairs` that both have."""

    set: str
    why_not: str = ""
    pairs: int = 0
    ours: float = 0.0
    theirs: float = 0.0
    found: Mapping[str, Any] | None = None  # what paired_bootstrap gives


def paired_differences(ours: Run, theirs: Run) -> list[Difference]:
    """By set, of all pairs that both runs judged at their end; one that says why where there is nothing to pair."""
    if why := _why_not(ours, theirs):
        return [Difference("", why)]
    mine, other = _margins(ours.path / FILE), _margins(theirs.path / FILE)
    found = [
        Difference(name, why)
        if (why := _another_set(ours, theirs, name))
        else _difference(name, mine[name], other[name])
        for name in mine
        if name in other
    ]
    return found or [Difference("", "they judged no set of the same name")]


def _why_not(ours: Run, theirs: Run) -> str:
    for run in (ours, theirs):
        if not run.is_run:
            return f"{run.path} is an evaluation, which keeps no margins of single pairs: rmcli evaluate --against"
        if not (run.path / FILE).is_file():
            return f"{run.path} has no {FILE}, which a training writes at its end"
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


def _margins(path: Path) -> _Margins:
    """By set and pair. A line that is not whole is passed over."""
    found: dict[str, dict[_Key, float]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                one = json.loads(line)
                key = (int(one["row_id"]), int(one["first"]), int(one["second"]))
                margin, name = number(one["margin"]), str(one["set"])
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if margin is not None:
                found.setdefault(name, {})[key] = margin
    return found


def _difference(name: str, ours: Mapping[_Key, float], theirs: Mapping[_Key, float]) -> Difference:
    keys = sorted(ours.keys() & theirs.keys())
    if not keys:
        return Difference(name, "they have no pair in common")
    mine, other = (right(np.array([some[key] for key in keys], np.float64)) for some in (ours, theirs))
    rows = np.array([key[0] for key in keys], np.int64)
    return Difference(
        name, "", len(keys), float(mine.mean()), float(other.mean()), paired_bootstrap(mine, other, rows)
    )
