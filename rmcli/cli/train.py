"""`rmcli train`."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from rmcli.errors import RmcliError

if TYPE_CHECKING:
    from rmcli.config.layers import Resolved


@reports
def train_command(
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR|URL", help="Prepared data; default: the preset's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Default: runs/PRESET-N.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of a few steps, and where a step goes.")
    ] = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a reward model on prepared data."""
    from rmcli.config.resolve import resolve
    from rmcli.packs import remote
    from rmcli.train.job import build_job, describe
    from rmcli.train.run import run

    resolved = resolve(preset, config or (), set_ or ())
    folder = _prepared_data(resolved, dry_run) if data is None else remote.local(data)
    job = build_job(resolved, folder, out)
    if dry_run:
        show_config(job.resolved, describe(job), json)
        return
    summary = run(job, profile)
    if json:
        output.answer_json(summary)
    else:
        output.answer(summary["model"])
    held_out = str(folder / "eval.jsonl") if "eval_pairs" in summary else "FILE"
    say_next("score", summary["model"], held_out, "-o", "scores.jsonl")


def _prepared_data(resolved: "Resolved", dry_run: bool) -> Path:
    """The folder prepared for this preset; else the one source prepared for another preset, prepared again."""
    from rmcli.config.layers import Layer
    from rmcli.config.resolve import relayer
    from rmcli.prepare.job import build_job
    from rmcli.prepare.run import run
    from rmcli.train.find_data import find_data

    found = find_data(resolved, Path("data"))
    if isinstance(found, Path):
        output.say(f"data: {found}")
        return found
    asked = {key: value for key, value in asdict(found).items() if f"data.{key}" not in resolved.explicit}
    asked |= {"sources": list(found.sources), "decontaminate": list(found.decontaminate)}
    layered = relayer(resolved, Layer("prepared for another preset", {"data": asked}))
    job = build_job(layered, None)
    names = ", ".join(source.path for source in found.sources)
    what = f"no data for preset {resolved.name} yet: {names} with {', '.join(job.map_fns)}"
    if "-" in [source.path for source in found.sources]:
        raise RmcliError(f"{what} would be prepared for it, but stdin is gone", "prepare it again for this preset")
    if dry_run:
        map_fn = [] if found.dataset_map_fn is None else ["--map-fn", found.dataset_map_fn]
        parts = [part for source in found.sources for part in source.as_arguments()]
        command = ["rmcli", "prepare", *parts, *map_fn, "--preset", resolved.name]
        raise RmcliError(f"{what} would be prepared for it first", f"run: {shlex.join(command)}")
    output.warn(f"{what} is prepared for it first")
    run(job)
    return job.folder
