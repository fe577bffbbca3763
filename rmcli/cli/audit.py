"""`rmcli audit`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    Preset,
    Quiet,
    Report,
    Settings,
    Verbose,
    reports,
    say_next,
    show_config,
)


@reports
def audit_command(
    place: Annotated[str, typer.Argument(metavar="DIR|URL", help="What rmcli prepare has written.")],
    report: Report = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Audit prepared data: lengths, duplicates, contradictions, leaks, shortcuts."""
    from rmcli.audit.page import report_file, write_page
    from rmcli.audit.run import run
    from rmcli.audit.screen import show
    from rmcli.config.layers import Layer
    from rmcli.config.presets import preset_names
    from rmcli.config.resolve import resolve
    from rmcli.packs import remote
    from rmcli.packs.manifest import files_of, read_manifest

    page = report_file(report, overwrite, [place, *files_of(Path(place))])
    folder = remote.local(place)
    manifest = read_manifest(folder)
    own = Layer(f"{place}/manifest.json", {"model": manifest["config"]["model"]}, explicit=False)
    resolved = resolve(preset, config or (), set_ or (), base=own)
    if dry_run:
        show_config(resolved, {"audit": place, "report": str(report or "none")}, json)
        return
    figures = run(folder, resolved.config.model, num_threads=resolved.config.data.num_proc)
    figures["folder"] = place
    if json:
        output.answer_json(figures)
    else:
        show(figures, brief=False)
    if page is not None:
        write_page(figures, page)
        output.say(f"audit in {report}")
    known = manifest["preset"] in preset_names()
    if known and resolve(manifest["preset"]).config.model.model_dump() == manifest["config"]["model"]:
        say_next("train", "--preset", manifest["preset"], "--data", place)
    else:
        output.say(f"next: rmcli train --data {shlex.quote(place)}, with the options that prepared it")
