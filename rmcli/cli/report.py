"""`rmcli report`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.options import Json, Quiet, Verbose, reports, say_next

if TYPE_CHECKING:
    from rmcli.output_files import OutputFile
    from rmcli.report.run_folder import Run


@reports
def report_command(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="What rmcli train has written, or an evaluation's metrics.json."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Default: report.html in the run, of several in this folder."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
    no_audit: Annotated[bool, typer.Option("--no-audit", help="Do not go through the run's data again.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One page of a run or an evaluation, or several side by side, with curves and paired differences."""
    from rmcli.report.comparison import by_letter
    from rmcli.report.page import check_plots
    from rmcli.report.run_folder import check_local, collect

    check_plots("a report")
    check_local(run)
    runs = by_letter([collect(Path(path)) for path in run])
    if len(runs) > 1:
        target, found = _several(runs, out or Path("report.html"), overwrite)
    else:
        target, found = _one(runs["A"], out, overwrite, not no_audit)
    if json:
        output.answer_json({"report": str(target), **found})
    else:
        _show(runs, found)
        output.answer(str(target))
    first = runs["A"]
    if len(runs) == 1 and first.is_run and (first.path / "model").is_dir():
        say_next("score", str(first.path / "model"), "FILE", "-o", "scores.jsonl")


def _several(runs: "Mapping[str, Run]", path: Path, overwrite: bool) -> tuple[Path, dict[str, Any]]:
    from rmcli.report.comparison import compare, comparison_file, write_comparison

    target = comparison_file(path, overwrite, [file for run in runs.values() for file in run.files])
    target.check()
    found = compare(runs)
    write_comparison(runs, found, target)
    return path, found


def _one(run: "Run", out: Path | None, overwrite: bool, with_audit: bool) -> tuple[Path, dict[str, Any]]:
    from rmcli.cli.run_report import data_audit
    from rmcli.packs.manifest import files_of
    from rmcli.report.comparison import compare
    from rmcli.report.evaluation import evaluation_file, write_evaluation
    from rmcli.report.run import PAGE, run_file, write_run

    path = out or (run.path / PAGE if run.path.is_dir() else run.path.with_name(PAGE))
    data = run.data.get("folder")
    read = [*run.files, *(files_of(Path(data)) if isinstance(data, str) else ())]
    target: OutputFile = (run_file if run.is_run else evaluation_file)(path, overwrite, read)
    target.check()
    if run.is_run:
        write_run(run, target, data_audit(run) if with_audit else None)
    elif run.metrics is not None:
        write_evaluation(run.metrics, target)
    return path, compare({"A": run})


def _show(runs: "Mapping[str, Run]", found: Mapping[str, Any]) -> None:
    from rmcli.report.comparison import figure_rows, notes, paired_rows, run_rows
    from rmcli.report.paired import not_all_compared

    rows = [[letter, path, *figures] for letter, path, _, _, *figures in run_rows(runs)]
    output.table(["", "run", "set", "accuracy", "95 %", "pairs", "at step"], rows, to_answer=False)
    for line in notes(runs):
        output.say(line)
    if len(runs) > 1:
        if last := figure_rows(runs):
            output.table(["last figures", *runs], last, to_answer=False)
        if said := not_all_compared([*runs]):
            output.say(said)
        paired, sentences = paired_rows(found["paired"])
        if paired:
            columns = ["set", "runs", "pairs", "first", "second", "difference", "95 %", "first ahead in"]
            output.table(columns, paired, to_answer=False, title="on the same held-out pairs")
        for line in sentences:
            output.say(line)
