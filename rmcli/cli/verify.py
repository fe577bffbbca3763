"""`rmcli verify`."""

from pathlib import Path
from typing import Annotated

import typer

from rmcli import output
from rmcli.cli.options import Json, Quiet, Verbose, reports
from rmcli.errors import RmcliError


@reports
def verify_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that train or export has written.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a model folder's golden conversations by plain transformers, in a fresh process."""
    from rmcli.model import model_folder
    from rmcli.ship.verify import verify

    model_folder.check(model)
    found = verify(model)
    if json:
        output.answer_json(found.as_dict())
    else:
        rows = [
            (check.case, _number(check.difference), _number(check.limit), check.verdict) for check in found.checks
        ]
        title = f"{found.golden} golden conversations, scored by {found.scored_by}"
        output.table(("case", "difference", "limit", "verdict"), rows, to_answer=True, title=title)
    failure = found.first_failure
    if failure is not None:
        off = "" if failure.difference is None else f", off by {failure.difference:.2g} (limit {failure.limit:.1g})"
        raise RmcliError(f"{model}: {failure.case}: {failure.fault}{off}", "do not ship it; rmcli export RUN -o DIR")
    output.say(f"next: hf upload YOUR-NAME/{model.absolute().name} {model}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
