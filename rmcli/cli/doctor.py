"""`rmcli doctor`."""

import typer

from rmcli import output
from rmcli.cli.options import Json, Quiet, Verbose, reports, say_next


@reports
def doctor_command(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Look at this machine: versions, devices, room, optional packages, the Hub.

    Each finding is ok, a note or a fault; a fault is exit code 1. --json is what a bug report needs.
    """
    from rmcli.doctor.run import run

    report = run()
    if json:
        output.answer_json(report.as_dict())
    else:
        report.show()
        say_next("doctor", "--json")
    if report.verdict == "fault":
        raise typer.Exit(1)
