"""The page of a run, at the end of `train` and by `rmcli report`, with an audit of its data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.errors import RmcliError

if TYPE_CHECKING:
    from rmcli.report.run_folder import Run


def write_at_end(run_folder: Path) -> None:
    """RUN/report.html, or one line that says why there is none: the model is there all the same."""
    from rmcli.report.page import check_plots
    from rmcli.report.run import PAGE, write_beside_run
    from rmcli.report.run_folder import collect

    try:
        check_plots("a report")
        audit = data_audit(collect(run_folder))
    except RmcliError as error:
        output.say(f"no {PAGE}: {error.message}{f'; {error.hint}' if error.hint else ''}")
        return
    page = write_beside_run(run_folder, audit)
    if page is not None:
        output.say(f"report in {page}")


def data_audit(run: "Run") -> dict[str, Any] | None:
    """Figures of the run's data, where that is still there and still the same; else it is said."""
    from rmcli.audit.run import run as audit
    from rmcli.config.sections import ModelSection
    from rmcli.packs.manifest import read_manifest

    folder = run.data.get("folder")
    try:
        if not isinstance(folder, str) or not Path(folder).is_dir():
            raise RmcliError(f"{folder} is not there" if folder else "run.json does not name it")
        manifest = read_manifest(Path(folder))
        if manifest["manifest_sha256"] != run.data.get("manifest_sha256"):
            raise RmcliError(f"{folder} holds other data now")
        return audit(Path(folder), ModelSection.model_validate(manifest["config"]["model"]))
    except RmcliError as error:
        output.say(f"the page says nothing of the data: {error.message}")
    return None
