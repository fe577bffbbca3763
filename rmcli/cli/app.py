"""The entry point, and which function each command is. Heavy imports stay inside those functions."""

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

from rmcli import __version__, output
from rmcli.cli.audit import audit_command
from rmcli.cli.ending import one_line_for_everything
from rmcli.cli.inspect_token import inspect_token_command
from rmcli.cli.map_fns import map_fns_command
from rmcli.cli.prepare import prepare_command
from rmcli.cli.presets import presets_app
from rmcli.cli.score import score_command
from rmcli.cli.train import train_command

app = typer.Typer(
    name="rmcli",
    help="Train, score and inspect reward models: packed, prefix-shared, exact.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for name, command in {
    "prepare": prepare_command,
    "audit": audit_command,
    "train": train_command,
    "score": score_command,
    "map-fns": map_fns_command,
    "inspect-token": inspect_token_command,
}.items():
    app.command(name)(command)
app.add_typer(presets_app, name="presets")


def main() -> None:
    output.open_streams()
    # torch and transformers make half a million objects that live to the end. Looking through them again and again
    # takes a second of every command, and once more at its end another.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' progress bars are for terminals
    try:
        app()
    except OSError as error:  # of --help and --version, which run outside the commands
        output.error(f"cannot write to stdout: {error.strerror or error}", None)
        output.give_up(sys.stdout)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        with one_line_for_everything():
            output.answer(f"rmcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    pass
