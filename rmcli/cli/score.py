"""`rmcli score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    same_configuration,
    say_next,
    show_config,
)
from rmcli.cli.several import NumProcesses, joined, start_and_leave
from rmcli.errors import ConfigError, RmcliError

if TYPE_CHECKING:
    from rmcli.score.results import Summary


@reports
def score_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model/ folder of a run.")],
    file: Annotated[
        str,
        typer.Argument(
            metavar="[INPUT|-]",
            help="Rows of {messages}, {prompt, response}, {prompt, responses} or {prompt, chosen, rejected}: JSON "
            "lines, a .json, .csv, .parquet or .arrow file, a folder (of files, or a prepared one), a URL, a Hub "
            "data set as org/name, or path=NAME,split=S,subset=S,revision=R.",
        ),
    ] = "-",
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|-",
            help="Scores, one line per row. Interrupted, FILE.part holds them: the same command goes on from it.",
        ),
    ] = "-",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier scores in -o.")] = False,
    map_fn: Annotated[
        str | None, typer.Option("--map-fn", metavar="NAME", help="Map function of the rows; see rmcli map-fns.")
    ] = None,
    by_prompt: Annotated[
        bool,
        typer.Option("--by-prompt", help="One line per prompt: its completions, their scores, which is the best."),
    ] = False,
    best_of: Annotated[
        int | None,
        typer.Option("--best-of", metavar="N", help="The best of each prompt's N answers, with its margin."),
    ] = None,
    mine_pairs: Annotated[
        str | None,
        typer.Option(
            "--mine-pairs",
            metavar="best_worst|adjacent|all",
            help="Pairs of each prompt's answers by their scores, for prepare and for DPO.",
        ),
    ] = None,
    min_margin: Annotated[
        float, typer.Option("--min-margin", metavar="X", help="Leave out pairs whose scores are less apart.")
    ] = 0.0,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="X", help="Leave out what has no score of at least X.")
    ] = None,
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
    """Score conversations, answers, or both sides of pairs."""
    from rmcli.lines.inputs import STDIN, files_read, parse_input
    from rmcli.model.device import find_device
    from rmcli.parallel import parent, world
    from rmcli.score.choice import asked_for
    from rmcli.score.results import output_file
    from rmcli.score.run import run
    from rmcli.scorer.load import checked, configuration_of

    with joined(num_processes) as several:
        source = parse_input(file)
        choice = asked_for(by_prompt, best_of, mine_pairs, min_margin, min_score)
        if world.is_first():
            output_file(files_read(source), out, overwrite)
        with output.said_already(parent.is_there()):
            resolved = configuration_of(model, preset, config or (), set_ or ())
        if dry_run:
            show_config(resolved, {"model": str(model), "input": file, "output": out, **choice.as_options()}, json)
            return
        if several.wanted > 1:
            if source.path == STDIN:
                raise ConfigError(f"--num-processes {several.wanted} reads no stdin", "give a file")
            start_and_leave(several, find_device(resolved.config.train.device, "train.device").type)
        ready = checked(resolved, not no_verify).config
        summary = run(ready, source, out, map_fn, overwrite, choice, is_verified=not no_verify)
        if not world.is_first():
            return
        _report(summary, out, json)
        if out != "-" and mine_pairs is not None:
            say_next("prepare", out, "--map-fn", "canonical", *same_configuration(preset, config, None))


def _report(summary: "Summary", out: str, as_json: bool) -> None:
    """What was scored. Raises RmcliError where something has no score."""
    from rmcli.score.results import report

    if as_json:
        output.answer_json(summary.as_dict(), to_stderr=out == "-")
    else:
        report(summary)
    if summary.errors:
        first = ", ".join(f"{count} {reason}" for reason, count in summary.errors.most_common())
        of_all = "rows and answers" if summary.prompts else f"of {summary.lines} lines"
        raise RmcliError(
            f"{summary.errors.total()} {of_all} have no score: {first}", f"the first is {summary.first_error}"
        )
    if out != "-":
        output.say(f"scores in {out}")
