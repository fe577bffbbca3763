"""The page of a run, at the end of `train` and by `rmcli report`, with an audit of its data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.errors import RmcliError, explained

if TYPE_CHECKING:
    from rmcli.config.sections import ModelSection
    from rmcli.report.run_folder import Run


def write_at_end(run_folder: Path) -> None:
    """RUN/report.html, or one line that says why there is none: whatever is wrong, it costs no finished run."""
    from rmcli.report.page import check_plots
    from rmcli.report.run import PAGE, write_beside_run
    from rmcli.report.run_folder import collect

    try:
        with explained("it cannot be made"):
            check_plots("a report")
            audit = data_audit(collect(run_folder))
    except RmcliError as error:
        output.say(f"no {PAGE}: {error.message}{f'; {error.hint}' if error.hint else ''}")
        return
    page = write_beside_run(run_folder, audit)
    if page is not None:
        output.say(f"report in {page}")


def data_audit(run: "Run") -> dict[str, Any] | None:
    """Figures of the run's data, where that is still there and still the same; else it is said, in one line."""
    try:
        with explained("its audit cannot be made"):
            return _data_audit(run)
    except RmcliError as error:
        output.say(f"the page says nothing of the data: {error.message}")
    return None


def _data_audit(run: "Run") -> dict[str, Any]:
    from rmcli.audit.run import run as audit
    from rmcli.backbones.hub import only_cached
    from rmcli.packs.manifest import read_manifest

    folder = run.data.get("folder")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise RmcliError(f"{folder} is not there" if folder else "run.json does not name it")
    manifest = read_manifest(Path(folder))
    if manifest["manifest_sha256"] != run.data.get("manifest_sha256"):
        raise RmcliError(f"{folder} holds other data now")
    with only_cached():  # a page needs no network
        return audit(Path(folder), _model(run.path, Path(folder), manifest))


def _model(run_folder: Path, folder: Path, manifest: Mapping[str, Any]) -> "ModelSection":
    """[model] as the data's manifest tells it, with the tokenizer that the run keeps where it keeps one."""
    from rmcli.config.layers import Layer
    from rmcli.config.resolve import resolve
    from rmcli.runs import backbone

    own = Layer(f"{folder}/manifest.json", {"model": manifest["config"]["model"]}, explicit=False)
    model = resolve(None, (), (), base=own).config.model
    return backbone.section(run_folder, model) if (run_folder / backbone.FOLDER).is_dir() else model
