"""The command line in this process."""

from dataclasses import dataclass

from typer.testing import CliRunner

from rmcli import output
from rmcli.cli.app import app


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


def run_cli(*arguments: object, stdin: str | None = None) -> Result:
    """The command line in this process; only its own exits are swallowed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    output.set_verbosity(0)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)
