"""The run folder: its name, made this run's own in one step, and what a killed run left in it."""

import shutil
from pathlib import Path

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.output_files import is_another
from rmcli.runs import checkpoint, record
from rmcli.runs.metrics_file import METRICS_FILE

MODEL, CONFIG_FILE = "model", "resolved.toml"
_ENDED_EARLY = {METRICS_FILE, CONFIG_FILE, record.FILE}  # what a run holds before its first step


def next_run_folder(root: Path, name: str) -> Path:
    """`root/name-N` with the first N that is not taken."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def claim_next(root: Path, name: str) -> Path:
    """Make `root/name-N` with the first free N. Of runs that begin at once each gets a folder of its own."""
    while True:
        folder = next_run_folder(root, name)
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            (folder / METRICS_FILE).open("x").close()
        except FileExistsError as error:
            if not folder.is_dir():  # the root is a file, or a link leads nowhere
                raise _cannot_write(folder, error) from error
        except OSError as error:
            raise _cannot_write(folder, error) from error
        else:
            return folder


def claim(folder: Path) -> Path:
    """Make the folder that the user named this run's own; what a killed run left there half written is removed.

    Raises RmcliError when a run or anything else is there, or nothing can be written.
    """
    try:
        if folder.is_dir():
            _clear(folder)
            if any(folder.iterdir()):
                raise RmcliError(f"run folder {folder} is not empty{_holds(folder)}", "choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS_FILE).open("x").close()
    except FileExistsError as error:
        if not folder.is_dir():
            raise _cannot_write(folder, error) from error
        raise RmcliError(f"another run has just begun in {folder}", "choose another with -o") from error
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return folder


def _cannot_write(folder: Path, error: OSError) -> RmcliError:
    return RmcliError(f"cannot write {folder}: {error.strerror or error}", "choose another folder with -o")


def _clear(folder: Path) -> None:
    """Remove what a killed run left half written, unless a process may still be writing there; named, each."""
    told = record.read(folder)
    if told is not None and record.may_be_running(told):
        return
    half = [*folder.glob("*.tmp-*"), *(folder / checkpoint.FOLDER).glob("*.tmp-*")]
    half = sorted(path for path in half if not _is_held(path))
    for path in half:
        _remove(path)
    if half:
        names = ", ".join(str(path.relative_to(folder)) for path in half)
        output.warn(f"removed from {folder} what a killed run left half written: {names}")
    inside = {path.name for path in folder.iterdir()}
    began = inside <= _ENDED_EARLY and METRICS_FILE in inside and not (folder / METRICS_FILE).stat().st_size
    if told is not None and began:
        for name in inside:
            (folder / name).unlink()
        output.warn(f"the run in {folder} ended before its first step: its folder is used again")


def _is_held(path: Path) -> bool:
    process = path.name.rpartition("-")[2]
    return not process.isdecimal() or is_another(int(process))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _holds(folder: Path) -> str:
    """Which run is in the folder and what it made, as the end of a sentence; empty where it is no run's."""
    told = record.read(folder)
    if told is None:
        return ""
    made = [str(path.relative_to(folder)) for path in checkpoint.list_checkpoints(folder)[-1:]]
    made += [MODEL] if (folder / MODEL).is_dir() else []
    has = f"; it has {' and '.join(made)}" if made else ""
    return f": a run that {record.how_it_ended(told)}{has}"
