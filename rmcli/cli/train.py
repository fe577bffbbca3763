"""`rmcli train`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    Preset,
    Quiet,
    Settings,
    Verbose,
    reports,
    say_next,
    show_config,
)
from rmcli.cli.run_report import write_at_end
from rmcli.cli.several import NumProcesses, joined, start_and_leave
from rmcli.errors import RmcliError

if TYPE_CHECKING:
    from rmcli.config.layers import Resolved
    from rmcli.prepare.job import Job as PrepareJob
    from rmcli.train.find_data import Elsewhere
    from rmcli.train.job import Job


@reports
def train_command(
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR|URL", help="Prepared data; default: the preset's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: runs/PRESET-N.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run of -o, or the newest one that ended early; begin where -o is not there yet.",
        ),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of a few steps, and where a step goes.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write RUN/report.html at the end, with plots.")
    ] = True,
    num_processes: NumProcesses = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a reward model on prepared data."""
    from rmcli.parallel import parent
    from rmcli.parallel.processes import check_gpus
    from rmcli.parallel.world import is_first
    from rmcli.report.run import PAGE
    from rmcli.train.describe import describe
    from rmcli.train.resume import finished
    from rmcli.train.same import agreed, check_same_options

    with joined(num_processes) as several:
        check_same_options(data=data is not None, output=out is not None, resume=resume, dry_run=dry_run)
        with output.said_already(parent.is_there()):
            job = _job(data, out, resume, preset, config or (), set_ or (), dry_run, json, several.number)
        job = agreed(job)
        check_gpus(several.wanted, job.device.type)
        if dry_run:
            show_config(job.resolved, describe(job), json)
            return
        summary = finished(job.run_folder) if job.is_done else None
        if summary is None and several.wanted > 1:
            start_and_leave(several, job.device.type)
        is_written = summary is not None and (job.run_folder / PAGE).exists()
        summary = _run(job, profile) if summary is None else _say_finished(job, summary)
        if report and not is_written and is_first():
            write_at_end(job.run_folder)
        if json:
            output.answer_json(summary)
        else:
            output.answer(summary["model"])
        if "eval_pairs" in summary:
            say_next("evaluate", summary["model"], str(job.data_folder / "eval.jsonl"))
        else:
            say_next("score", summary["model"], "FILE", "-o", "scores.jsonl")


def _job(
    data: str | None,
    out: Path | None,
    resume: bool,
    preset: str | None,
    config: Sequence[Path],
    set_: Sequence[str],
    dry_run: bool,
    as_json: bool,
    processes: int,
) -> "Job":
    """What is to be trained. Each process finds and checks it; what is chosen or made for it the first one does."""
    from rmcli.config.resolve import resolve
    from rmcli.packs import remote
    from rmcli.parallel.agreement import on_each, one_per_machine_first
    from rmcli.parallel.collectives import on_first
    from rmcli.runs.folder import clear_unborn, newest_unfinished
    from rmcli.train.job import build_job
    from rmcli.train.resume import is_run, resumed_job

    earlier = on_first(lambda: (out or newest_unfinished(Path("runs"))) if resume else None)
    given = None if data is None else one_per_machine_first(lambda: remote.local(data))
    if earlier is not None and on_first(lambda: is_run(earlier)):
        return on_each(lambda: resumed_job(earlier, given, preset, config, set_, processes))
    if earlier is not None and not dry_run:
        on_first(lambda: clear_unborn(earlier))
    resolved = on_each(lambda: resolve(preset, config, set_))
    try:
        folder = given or on_first(lambda: _prepared_data(resolved, dry_run))
    except RmcliError as error:
        if dry_run:
            show_config(resolved, {"missing": error.message}, as_json)
        raise
    return on_each(lambda: build_job(resolved, folder, out, processes=processes))


def _run(job: "Job", profile: bool) -> dict[str, Any]:
    from rmcli.train.run import run

    return run(job, profile, shlex.join(["rmcli", *sys.argv[1:]]))


def _say_finished(job: "Job", summary: dict[str, Any]) -> dict[str, Any]:
    from rmcli.runs import lock

    lock.clear(job.run_folder)
    early = None if job.past is None else job.past.facts.get("stopped_early")
    output.say(f"{job.run_folder} is finished: {early or f'all {job.total_steps} steps are done'}")
    if early:
        output.say("a larger train.early_stopping_patience lets it go on")
    return summary


def _prepared_data(resolved: "Resolved", dry_run: bool) -> Path:
    """The folder prepared for this preset; else the one source prepared for another preset, prepared again."""
    from rmcli.prepare.job import build_job
    from rmcli.prepare.run import run
    from rmcli.prepare.show import report_account
    from rmcli.train.find_data import find_data, unnamed_map_fns

    found = find_data(resolved, Path("data"))
    if isinstance(found, Path):
        output.say(f"data: {found}")
        return found
    wanted = found.asked_again(resolved)
    if unnamed := unnamed_map_fns(wanted, resolved):
        raise RmcliError(
            f"no data for preset {resolved.name} yet, and {found.folder} names the map function {unnamed[0]}, "
            "which runs code: it is loaded only when you name it",
            f"if you trust it: {_prepare_command(wanted)}",
        )
    job = build_job(wanted, None)
    names = ", ".join(source.section.path for source in job.sources)
    what = f"no data for preset {resolved.name} yet: {names} with {', '.join(job.map_fns)}"
    if "-" in [source.section.path for source in job.sources]:
        raise RmcliError(f"{what} would be prepared for it, but stdin is gone", "prepare it again for this preset")
    _say_changed_map_functions(job, found)
    if dry_run:
        raise RmcliError(f"{what} would be prepared for it first", f"run: {_prepare_command(wanted)}")
    output.warn(f"{what} is prepared for it first")
    report_account(run(job))
    return job.folder


def _prepare_command(wanted: "Resolved") -> str:
    data = wanted.config.data
    map_fn = [] if data.dataset_map_fn is None else ["--map-fn", data.dataset_map_fn]
    parts = [part for source in data.sources for part in source.as_arguments()]
    return shlex.join(["rmcli", "prepare", *parts, *map_fn, "--preset", wanted.name])


def _say_changed_map_functions(job: "PrepareJob", found: "Elsewhere") -> None:
    """Rows may become other pairs than they are in the set that is prepared again."""
    from rmcli.rows.map_fns.apply import source_sha256

    functions = {source.map_fn: source.map_function for source in job.sources}
    for name, function in functions.items():
        there, here = found.map_fn_sha256.get(name), source_sha256(function)
        if there is None:
            with_which = ", ".join(found.map_fn_sha256) or "an unnamed one"
            output.warn(f"map function {name}, where {found.folder} was prepared with {with_which}")
        elif there != here:
            output.warn(
                f"map function {name} has changed since {found.folder} was prepared with it: sha256 {there[:12]} "
                f"there, {here[:12]} now"
            )
