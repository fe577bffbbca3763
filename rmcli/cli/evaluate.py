"""`rmcli evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    NoVerify,
    Preset,
    Quiet,
    Settings,
    Verbose,
    reports,
    say_next,
    show_config,
)
from rmcli.cli.several import NumProcesses, joined, start_and_leave
from rmcli.errors import RmcliError

if TYPE_CHECKING:
    from rmcli.evaluate.folder import Place


@reports
def evaluate_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model/ folder of a run.")],
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SET]...",
            help="Preference sets: what score reads, with answers of which one is better, or prepared folders; or "
            "path=NAME,name=CALLED,map_fn=F,split=S,max_rows=N.",
        ),
    ] = None,
    map_fn: Annotated[
        str | None,
        typer.Option("--map-fn", metavar="NAME", help="Map function of the sets' rows; auto if none is given."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME[=FILE]",
            help="A public suite by its own rules: reward-bench, reward-bench-2, rm-bench, judge-bench; repeatable.",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Figures by this column of the rows; repeatable."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="MODEL", help="Another model on the same pairs, and the difference."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option("--min-accuracy", metavar="X", min=0, max=1, help="Exit with 1 where a set or suite is below."),
    ] = None,
    format_bias: Annotated[
        int | None,
        typer.Option(
            "--format-bias", metavar="N", min=0, help="Answers of each set to score in other forms, too (50)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="For metrics.json and report.html; evaluations/NAME-N if none."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation in -o.")] = False,
    no_verify: NoVerify = False,
    num_processes: NumProcesses = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what scores are worth: accuracy, calibration, biases."""
    from rmcli.evaluate.folder import place
    from rmcli.evaluate.run import run
    from rmcli.evaluate.wanted import wanted as asked_for
    from rmcli.lines.inputs import files_read
    from rmcli.model.device import find_device
    from rmcli.parallel import parent, world
    from rmcli.scorer.load import checked, configuration_of

    with joined(num_processes) as several:
        is_shared = several.number > 1
        what = asked_for(sets or (), suite or (), map_fn, by or (), format_bias, against is not None, is_shared)
        sources = [*what.sets, *(source for _, source in what.suites if source is not None)]
        read = [file for source in sources for file in files_read(source)]
        target = place(out, model, overwrite, read)
        if world.is_first():
            target.check()
        with output.said_already(parent.is_there()):
            resolved = configuration_of(model, preset, config or (), set_ or ())
            other = None if against is None else configuration_of(against, preset, config or (), set_ or ())
        if dry_run:
            plan = {"model": str(model), "sets": [one.label for one in what.sets], "suites": suite or []}
            other_model = None if against is None else str(against)
            show_config(resolved, {**plan, "against": other_model, "output": str(target.folder)}, json)
            return
        if several.wanted > 1:
            start_and_leave(several, find_device(resolved.config.train.device, "train.device").type)
        ours = checked(resolved, not no_verify).config
        theirs = None if other is None else checked(other, not no_verify).config
        found = run(ours, what, theirs, is_verified=not no_verify)
        if world.is_first():
            _finish(found, target, json, min_accuracy)


def _finish(found: Mapping[str, Any], target: "Place", as_json: bool, min_accuracy: float | None) -> None:
    """Keep the figures and show them. Raises RmcliError where a set has none, or is below what is asked for."""
    from rmcli.evaluate.screen import show
    from rmcli.evaluate.sets import check_measured

    target.write_metrics(found)
    if as_json:
        output.answer_json(found)
    else:
        show(found)
    pages = [target.metrics.path, *([target.report.path] if target.write_report(found) else [])]
    output.say(f"figures in {' and '.join(map(str, pages))}")
    say_next("serve", str(found["model"]))
    check_measured(found["not_measured"].values())
    if min_accuracy is not None:
        _check_accuracy(found, min_accuracy, target)


def _check_accuracy(found: Mapping[str, Any], least: float, target: "Place") -> None:
    """Raises RmcliError that names all sets and suites below, and those of which nothing was measured."""
    measured = [(one["name"], one["figures"]["accuracy"]) for one in found["sets"]]
    measured += [(one["suite"], one["headline"]) for one in found["suites"]]
    below = [
        f"{name} {'not measured' if value is None else f'{value:.4f}'}"
        for name, value in measured
        if value is None or value < least
    ]
    if below:
        raise RmcliError(
            f"accuracy below --min-accuracy {least:g}: {', '.join(below)}",
            f"the figures are in {target.metrics.path}",
        )
