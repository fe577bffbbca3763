"""`rmcli score`."""

from pathlib import Path
from typing import Annotated

import typer

from rmcli import output
from rmcli.cli.options import ConfigFiles, DryRun, Json, Preset, Quiet, Settings, Verbose, reports, show_config
from rmcli.errors import RmcliError


@reports
def score_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model/ folder of a run.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="[FILE|-]",
            help="Rows of {messages}, {prompt, response}, {prompt, responses} or {prompt, chosen, rejected}: JSON "
            "lines, or a .json, .csv, .parquet or .arrow file.",
        ),
    ] = "-",
    out: Annotated[str, typer.Option("-o", "--output", metavar="FILE|-", help="Scores, one line per line.")] = "-",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier scores in -o.")] = False,
    map_fn: Annotated[
        str | None, typer.Option("--map-fn", metavar="NAME", help="Map function of the rows; see rmcli map-fns.")
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Score even if the model's files are not as they were exported.")
    ] = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score conversations, answers, or both sides of pairs."""
    from rmcli.backbones.context import within_positions
    from rmcli.model import hashes
    from rmcli.score.results import output_file, report
    from rmcli.score.run import run
    from rmcli.scorer.load import configuration_of
    from rmcli.tokens.tokenizer import load_model_config

    output_file(file, out, overwrite)
    resolved = configuration_of(model, preset, config or (), set_ or ())
    if dry_run:
        show_config(resolved, {"model": str(model), "input": file, "output": out}, json)
        return
    if not no_verify:
        hashes.verify(model)
    resolved = within_positions(resolved, load_model_config(resolved.config.model))
    summary = run(resolved.config, file, out, map_fn, overwrite)
    if json:
        output.answer_json(summary.as_dict(), to_stderr=out == "-")
    else:
        report(summary)
    if summary.errors:
        first = ", ".join(f"{count} {reason}" for reason, count in summary.errors.most_common())
        raise RmcliError(f"{summary.errors.total()} of {summary.lines} lines have no score: {first}")
    if out != "-":
        output.say(f"scores in {out}")
