"""The command line in this process."""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from rmcli import output
from rmcli.cli.app import app


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


_modules = 0  # imported when the collector was last told of them


def run_cli(*arguments: object, stdin: str | None = None) -> Result:
    """The command line in this process; only its own exits are swallowed.

    `train` writes its page, which takes a second or two, only where --report is asked for.
    """
    if arguments[:1] == ("train",) and "--report" not in arguments and "--help" not in arguments:
        arguments = (*arguments, "--no-report")
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    output.set_verbosity(0)
    _keep_modules_out_of_collections()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def as_options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-s", setting)]


def train(cli: Callable[..., Result], data: Path, out: str, *settings: str) -> Result:
    """`cli train` of the tiny preset."""
    return cli("train", "-p", "tiny", "--data", data, "-o", out, *as_options(*settings))


def _keep_modules_out_of_collections() -> None:
    """A run collects when it starts and when it logs: most of its time, where libraries are looked through."""
    global _modules
    if len(sys.modules) > _modules:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)
