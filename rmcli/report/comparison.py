"""Runs and evaluations side by side: curves overlaid, last figures, what differs, paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from rmcli.metrics.names import MARGINS_FILE
from rmcli.output_files import OutputFile
from rmcli.report.judged import verdict
from rmcli.report.page import check_plots, page_file, write_page
from rmcli.report.paired import Difference, all_differences, not_all_compared
from rmcli.report.run import headline, how_it_stopped
from rmcli.report.run_folder import Run
from rmcli.report.training import last, overlaid_curves
from rmcli.report.values import (
    count,
    decimal,
    ends,
    flat,
    interval,
    mapping,
    mappings,
    number,
    per_cent,
    signed,
    text,
)

TITLE = "Comparison of "
_LAST = {
    "loss": "loss",
    "accuracy": "accuracy in training",
    "margin": "margin in training",
    "eval_loss": "held-out loss",
    "eval_accuracy": "held-out accuracy",
    "eval_margin": "held-out margin",
    "tokens_per_s": "tokens per second, last",
}


def comparison_file(path: Path, overwrite: bool, inputs: Sequence[str | Path]) -> OutputFile:
    """Where the page goes; an earlier comparison may be replaced."""
    return page_file(path, "comparison report", TITLE, overwrite, inputs)


def by_letter(runs: Sequence[Run]) -> dict[str, Run]:
    """A, B, ... in the order given; past Z numbers."""
    letters = [*ascii_uppercase, *map(str, range(len(ascii_uppercase) + 1, len(runs) + 1))]
    return dict(zip(letters, runs, strict=False))


def compare(runs: Mapping[str, Run]) -> dict[str, Any]:
    """The figures of a comparison as plain data, by letter."""
    return {
        "runs": {letter: _told(run) for letter, run in runs.items()},
        "figures": figures(runs),
        "configuration": differing({letter: run.config for letter, run in runs.items()}),
        "versions": differing({letter: run.versions for letter, run in runs.items()}),
        "paired": [{"first": one, "second": other, **vars(found)} for one, other, found in all_differences(runs)],
    }


def _told(run: Run) -> dict[str, Any]:
    """What it is, and by which figures it is known."""
    found = headline(run)
    known = {"accuracy": number(found.accuracy), "pairs": number(found.pairs), "step": number(found.step)}
    span = ends(found.interval)
    known |= {"set": found.set if found.accuracy is not None else None, "interval": None if span is None else [*span]}
    return {"path": str(run.path), "status": run.status, "headline": known, "notes": [*run.notes]}


def figures(runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """By letter the last figures as numbers, named as in metrics.jsonl, and those of `sets` as in metrics.json."""
    return {
        letter: {
            "step": run.last_step,
            **{name: last(run, name) for name in _LAST},
            "sets": [{"name": text(one.get("name")), "figures": _numbers(one)} for one in _sets(run)],
        }
        for letter, run in runs.items()
    }


def _numbers(one: Mapping[str, Any]) -> dict[str, Any]:
    """Of a set, what is one number or an interval."""
    found, calibration = mapping(one.get("figures")), mapping(mapping(one.get("figures")).get("calibration"))
    span = ends(found.get("interval"))
    return {
        **{name: number(found.get(name)) for name in ("pairs", "groups", "accuracy", "mean_margin")},
        "interval": None if span is None else [*span],
        "calibration": {name: number(calibration.get(name)) for name in ("log_loss", "brier", "ece", "temperature")},
    }


def write_comparison(runs: Mapping[str, Run], compared: Mapping[str, Any], target: OutputFile) -> None:
    """Write the page of what `compare` found. The same runs give the same bytes.

    Raises ConfigError without matplotlib, RmcliError when the page cannot be written.
    """
    check_plots("a report")
    evaluations = {letter: mappings(mapping(run.metrics).get("sets")) for letter, run in runs.items()}
    paired, sentences = paired_rows(compared["paired"])
    sentences = [said for said in [not_all_compared([*runs]), *sentences] if said]
    write_page(
        target,
        "comparison.html",
        {
            "title": f"{TITLE}{len(runs)} runs",
            "letters": list(runs),
            "runs": run_rows(runs),
            "notes": notes(runs),
            "curves": overlaid_curves(runs),
            "figures": figure_rows(runs),
            "intervals": [
                [text(one.get("name")), letter, decimal(figures.get("accuracy")), interval(figures.get("interval"))]
                for letter, sets in evaluations.items()
                for one in sets
                if number((figures := mapping(one.get("figures"))).get("accuracy")) is not None
            ],
            "configuration": compared["configuration"],
            "versions": compared["versions"],
            "paired": paired,
            "sentences": sentences,
        },
    )


def notes(runs: Mapping[str, Run]) -> list[str]:
    """How runs stopped, and what is left out of them, by letter."""
    return [f"{letter}: {said}" for letter, run in runs.items() for said in (*how_it_stopped(run), *run.notes)]


def run_rows(runs: Mapping[str, Run]) -> list[list[Any]]:
    """Letter, path, what it is, when it began, and by which set it is known: accuracy, interval, pairs, step."""
    rows = []
    for letter, run in runs.items():
        found = headline(run)
        cells = [found.set, decimal(found.accuracy), interval(found.interval), count(found.pairs), count(found.step)]
        rows.append([letter, text(run.path), run.status, text(run.told.get("started")), *cells])
    return rows


def figure_rows(runs: Mapping[str, Run]) -> list[list[str]]:
    """Last figures: a name, then a cell for each run; those that no run has are left out."""
    rows = [[title, *(_shown(name, last(run, name)) for run in runs.values())] for name, title in _LAST.items()]
    rows.insert(0, ["last step in metrics.jsonl", *(text(count(run.last_step)) for run in runs.values())])
    rows.insert(1, ["evaluated at step", *(text(count(run.evaluated_at)) for run in runs.values())])
    sets = {letter: {text(one.get("name")): one for one in _sets(run)} for letter, run in runs.items()}
    for name in dict.fromkeys(name for found in sets.values() for name in found):
        its = [mapping(mapping(sets[letter].get(name)).get("figures")) for letter in runs]
        rows.append([f"{name}: accuracy", *(decimal(one.get("accuracy")) for one in its)])
        rows.append([f"{name}: log-loss", *(decimal(mapping(one.get("calibration")).get("log_loss")) for one in its)])
        rows.append([f"{name}: ECE", *(decimal(mapping(one.get("calibration")).get("ece")) for one in its)])
    return [row for row in rows if set(row[1:]) != {"-"}]


def _sets(run: Run) -> list[Mapping[str, Any]]:
    return mappings(mapping(run.metrics).get("sets"))


def _shown(name: str, value: Any) -> str:
    return decimal(value, 0) if name == "tokens_per_s" else decimal(value)


def differing(values: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A key, then its value in each; keys that all have alike are left out."""
    all_flat = [flat(one) for one in values.values()]
    keys = dict.fromkeys(key for one in all_flat for key in one)
    rows = [[key, *(text(one.get(key)) for one in all_flat)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def paired_rows(paired: Sequence[Mapping[str, Any]]) -> tuple[list[list[Any]], list[str]]:
    """Rows of the differences found, and a sentence for each: what it allows to say, or why there is none."""
    rows: list[list[Any]] = []
    sentences = []
    for given in paired:
        one, other = given["first"], given["second"]
        found = Difference(**{name: value for name, value in given.items() if name not in ("first", "second")})
        about = f"{one} and {other}" + (f" on {found.set}" if found.set else "")
        if found.found is None:
            sentences.append(f"{about}: {found.why_not}.{_left_out(found)}")
            continue
        sentences.append(f"{about}: {verdict(found.found, one, other)}{_left_out(found)}")
        rows.append(
            [
                found.set,
                f"{one} less {other}",
                found.pairs,
                decimal(found.ours),
                decimal(found.theirs),
                signed(found.found["difference"]),
                interval(found.found["interval"]),
                per_cent(found.found["favours_ours"]),
            ]
        )
    return rows, sentences


def _left_out(found: Difference) -> str:
    said = ""
    if found.not_compared:
        said += f" Pairs left out, as not both have a finite margin of them: {found.not_compared:,}."
    if found.unread:
        said += f" Lines of {MARGINS_FILE} that hold no pair: {found.unread:,}."
    return said
