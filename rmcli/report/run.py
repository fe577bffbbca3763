"""The page of a run, from its folder: curves, evaluation, data, throughput, configuration, versions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rmcli import output
from rmcli.config.sections_of_evaluation import HELD_OUT
from rmcli.errors import RmcliError, explained
from rmcli.metrics.intervals import wilson_interval
from rmcli.output_files import OutputFile
from rmcli.report.data import LENGTH_COLUMNS, SPLIT_COLUMNS, data_plots, length_rows, split_rows
from rmcli.report.evaluation import sets_and_suites
from rmcli.report.page import check_plots, page_file, write_page
from rmcli.report.run_folder import Run, collect, name_of
from rmcli.report.training import last, run_curves
from rmcli.report.values import count, decimal, flat, interval, mapping, mappings, number, per_cent, text

PAGE = "report.html"
TITLE = "Run "


def run_file(path: Path, overwrite: bool = False) -> OutputFile:
    """Where the page goes; an earlier run's page may be replaced."""
    return page_file(path, "run report", TITLE, overwrite, [])


def write_beside_run(run_folder: Path, audit: Mapping[str, Any] | None = None) -> Path | None:
    """For the end of training: RUN/report.html, or one line that says why there is none. No error gets out."""
    target = run_folder / PAGE
    try:
        with explained("it cannot be made"):  # whatever is wrong, it costs no finished run
            write_run(collect(run_folder), run_file(target, overwrite=True), audit)
    except RmcliError as error:
        output.say(f"no {PAGE}: {error.message}{f'; {error.hint}' if error.hint else ''}")
        return None
    return target


def write_run(run: Run, target: OutputFile, audit: Mapping[str, Any] | None = None) -> None:
    """Write the page of a run, the same bytes of the same run. `audit`: figures of its data, where that is at hand.

    Raises ConfigError without matplotlib, RmcliError when the page cannot be written.
    """
    check_plots("a report")
    metrics = mapping(run.metrics)
    write_page(
        target,
        "run.html",
        {
            "title": f"{TITLE}{name_of(run)}",
            "summary": _summary(run),
            "headline": _headline(run),
            "facts": _facts(run),
            "curves": run_curves(run),
            "throughput": throughput_rows(run),
            "evaluation_columns": list(_EVALUATION),
            "evaluations": [
                [count(line.get("step")), *(decimal(line.get(f"eval_{name}")) for name in _EVALUATION.values())]
                for line in run.evaluations
            ],
            **sets_and_suites(metrics),
            "audit": None if audit is None else _audit(audit),
            "command": text(run.told.get("command")),
            "toml": run.toml,
            "versions": [[name, text(version)] for name, version in flat(run.versions).items()],
            "resumed": _resumed(run),
        },
    )


_EVALUATION = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "lowest score": "score_min",
    "highest": "score_max",
}


@dataclass(frozen=True)
class Headline:
    """Accuracy on the set by which a run or an evaluation is known, its 95 % interval, and of how many pairs."""

    set: str = "-"
    accuracy: Any = None
    interval: Any = None
    pairs: Any = None


def headline(run: Run) -> Headline:
    """Of the pairs held out, as evaluated at the end or last; of an evaluation its first set."""
    for one in mappings(mapping(run.metrics).get("sets")):
        figures = mapping(one.get("figures"))
        if number(figures.get("accuracy")) is not None and (not run.is_run or one.get("name") == HELD_OUT):
            return Headline(text(one.get("name")), figures["accuracy"], figures.get("interval"), figures.get("pairs"))
    accuracy, pairs = last(run, "eval_accuracy"), last(run, "eval_pairs")
    if accuracy is None or not 0 <= accuracy <= 1:
        return Headline()
    return Headline(HELD_OUT, accuracy, [*wilson_interval(accuracy, int(pairs))] if pairs else None, pairs)


def _headline(run: Run) -> dict[str, str] | None:
    found = headline(run)
    if found.accuracy is None:
        return None
    about = f"{found.set} accuracy; 95 %: {interval(found.interval)}; {count(found.pairs)} pairs"
    return {"accuracy": decimal(found.accuracy), "about": about}


def _summary(run: Run) -> str:
    """What it is, how far it came, what it ran on, as one line."""
    steps = f"{count(run.log[-1]['step']):,} steps" if run.log else None
    parts = [run.told.get("preset"), steps, run.told.get("device")]
    return f"This is {run.status}: {', '.join(text(part) for part in parts if part)}."


def _facts(run: Run) -> list[list[str]]:
    told, base = run.told, run.told.get("base")
    rows = [
        ["folder", text(run.path)],
        ["preset", told.get("preset")],
        ["base model", mapping(run.config.get("model")).get("pretrained_model_name_or_path")],
        *([f"base: {name}", value] for name, value in flat(mapping(base)).items()),
        ["data", run.data.get("folder")],
        ["its manifest's sha256", run.data.get("manifest_sha256")],
        ["device", told.get("device")],
        ["processes", told.get("processes")],
        ["started", told.get("started")],
        ["ended", told.get("ended")],
    ]
    return [[name, text(value)] for name, value in rows if value not in (None, {}, [], "")]


def throughput_rows(run: Run) -> list[list[Any]]:
    """Medians over the log lines but the first, whose steps warm up."""
    lines = run.log[1:] or run.log
    names = {
        "tokens_per_s": ("tokens per second", lambda value: decimal(value, 0)),
        "pairs_per_s": ("pairs per second", lambda value: decimal(value, 2)),
        "flops_per_s": ("model TFLOP/s", lambda value: decimal(value / 1e12, 3)),
        "mfu": ("MFU", per_cent),
        "effective_mfu": ("MFU as if no prompt were shared", per_cent),
    }
    rows: list[list[Any]] = []
    for name, (title, show) in names.items():
        values = [value for line in lines if (value := number(line.get(name))) is not None]
        if values:
            rows.append([title, show(median(values)), show(min(values)), show(max(values))])
    return rows


def _audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "findings": audit["findings"],
        "split_columns": SPLIT_COLUMNS,
        "splits": split_rows(audit),
        "length_columns": LENGTH_COLUMNS,
        "lengths": length_rows(audit),
        "plots": data_plots(audit),
        "folder": audit["folder"],
    }


def _resumed(run: Run) -> list[list[str]]:
    names = ("at", "step", "device")
    return [[text(one.get(name)) for name in names] for one in mappings(run.told.get("resumed"))]
