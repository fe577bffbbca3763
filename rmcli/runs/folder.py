"""The run folder: its name, and that it is empty when a run begins."""

from pathlib import Path

from rmcli.errors import RmcliError
from rmcli.runs.metrics_file import METRICS_FILE


def next_run_folder(root: Path, name: str) -> Path:
    """`root/name-N` with the first N that is not taken."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def make_run_folder(folder: Path) -> None:
    """Raises RmcliError when something is there already, or nothing can be written."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise RmcliError(f"run folder {folder} is not empty", "choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS_FILE).touch()
    except OSError as error:
        raise RmcliError(
            f"cannot write {folder}: {error.strerror or error}", "choose another folder with -o"
        ) from error
