"""The page of a run, from its folder: curves, evaluation, data, throughput, configuration, versions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rmcli import output
from rmcli.config.sections_of_evaluation import HELD_OUT
from rmcli.errors import RmcliError, explained
from rmcli.output_files import OutputFile
from rmcli.report.data import LENGTH_COLUMNS, SPLIT_COLUMNS, data_plots, length_rows, split_rows
from rmcli.report.evaluation import sets_and_suites
from rmcli.report.page import check_plots, page_file, write_page
from rmcli.report.run_folder import Run, collect, name_of
from rmcli.report.training import run_curves
from rmcli.report.values import count, decimal, flat, interval, mapping, mappings, number, per_cent, text

PAGE = "report.html"
TITLE = "Run "


def run_file(path: Path, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> OutputFile:
    """Where the page goes; an earlier run's page may be replaced."""
    return page_file(path, "run report", TITLE, overwrite, inputs)


def write_beside_run(run_folder: Path, audit: Mapping[str, Any] | None = None) -> Path | None:
    """For the end of training: RUN/report.html, or one line that says why there is none. No error gets out."""
    target = run_folder / PAGE
    try:
        with explained("it cannot be made"):  # whatever is wrong, it costs no finished run
            run = collect(run_folder)
            write_run(run, run_file(target, overwrite=True, inputs=run.files), audit)
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
    """Accuracy on the set by which a run or an evaluation is known, its 95 % interval, how many pairs, the step.

    Without metrics.json there is no interval: how many groups the pairs are of is told there alone.
    """

    set: str = "-"
    accuracy: Any = None
    interval: Any = None
    pairs: Any = None
    step: Any = None


def headline(run: Run) -> Headline:
    """Of the pairs held out, as evaluated at the end or last; of an evaluation its first set."""
    for one in mappings(mapping(run.metrics).get("sets")):
        figures = mapping(one.get("figures"))
        if number(figures.get("accuracy")) is not None and (not run.is_run or one.get("name") == HELD_OUT):
            return Headline(
                text(one.get("name")),
                figures["accuracy"],
                figures.get("interval"),
                figures.get("pairs"),
                run.evaluated_at,
            )
    line = run.evaluations[-1] if run.evaluations else {}
    accuracy = number(line.get("eval_accuracy"))
    if accuracy is None or not 0 <= accuracy <= 1:
        return Headline()
    return Headline(HELD_OUT, accuracy, None, number(line.get("eval_pairs")), run.evaluated_at)


def _headline(run: Run) -> dict[str, str] | None:
    found = headline(run)
    if found.accuracy is None:
        return None
    sure = "no interval without metrics.json" if found.interval is None else f"95 %: {interval(found.interval)}"
    about = f"{found.set} accuracy, evaluated at step {count(found.step)}; {sure}; {count(found.pairs)} pairs"
    return {"accuracy": decimal(found.accuracy), "about": about}


def _summary(run: Run) -> list[str]:
    """What it is, how far it came, what it ran on; how it stopped and which evaluation was best; what is left out."""
    step = None if run.last_step is None else f"last step in metrics.jsonl: {count(run.last_step):,}"
    at = None if run.evaluated_at is None else f"evaluated at step {count(run.evaluated_at):,}"
    parts = [run.told.get("preset"), run.told.get("device"), step, at]
    said = f"This is {run.status}: {', '.join(text(part) for part in parts if part)}."
    return [said, *how_it_stopped(run), *run.notes]


def how_it_stopped(run: Run) -> list[str]:
    """That it stopped early and why, and which evaluation was best: sentences, none where run.json does not say."""
    result = mapping(run.told.get("result"))
    early, best = result.get("stopped_early"), mapping(result.get("best"))
    said = []
    if early:  # a run of before says only that it did
        why = early.removeprefix("stopped early").removeprefix(":").strip() if isinstance(early, str) else ""
        said.append(f"It stopped early{' ' if why.startswith('at ') else ': ' if why else ''}{why.rstrip('.')}.")
    if number(best.get("step")) is not None:
        value = f"{text(best.get('figure') or 'its figure')} {decimal(best.get('value'), 4)}"
        said.append(f"The best evaluation was that of step {count(best['step'])}: {value}.")
    return said


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
        *([f"kernels: {name}", value] for name, value in flat(mapping(told.get("kernels"))).items()),
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
        "mfu_fp8": ("MFU of the FP8 peak", per_cent),
        "effective_mfu_fp8": ("MFU of the FP8 peak as if no prompt were shared", per_cent),
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
