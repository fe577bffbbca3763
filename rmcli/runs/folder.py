"""The run folder: its name, made this run's own in one step, and what a killed run left in it."""

import shlex
import shutil
from pathlib import Path

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.output_files import is_another
from rmcli.runs import backbone, checkpoint, lock, record
from rmcli.runs.metrics_file import METRICS_FILE
from rmcli.runs.whole_file import write_whole

MODEL, BEST_MODEL, ADAPTER, CONFIG_FILE = "model", "model-best", "adapter", "resolved.toml"
# What a run holds before its first step.
_ENDED_EARLY = {METRICS_FILE, CONFIG_FILE, record.FILE, lock.FILE, backbone.FOLDER}


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
                raise RmcliError(f"run folder {folder} is not empty{_holds(folder)}", _way_out(folder))
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
    if told is not None and inside <= _ENDED_EARLY and _has_no_metrics(folder):
        for name in sorted(
            inside, key=lambda name: name == record.FILE
        ):  # killed meanwhile, it is still known by that
            _remove(folder / name)
        output.warn(f"the run in {folder} ended before its first step: its folder is used again")


def reopen(folder: Path, past: Path | None) -> None:
    """Make an earlier start's folder, which this process holds, as it was at the checkpoint `past`, or at its start.

    What a killed process left half written goes, and what came after the checkpoint; named, each. Files that are no
    run's stay, and those that say what the run is: they are written over, so that killed meanwhile it still is one.
    Raises OSError.
    """
    half = [*folder.glob("*.tmp-*"), *(folder / checkpoint.FOLDER).glob("*.tmp-*")]
    if past is None:
        later = [folder / name for name in (backbone.FOLDER, checkpoint.FOLDER) if (folder / name).exists()]
    else:
        both = [
            path for kind in (checkpoint.STEP, checkpoint.BEST) for path in checkpoint.list_checkpoints(folder, kind)
        ]
        later = [path for path in both if checkpoint.step_of(path) > checkpoint.step_of(past)]
    for path in (*half, *later):
        _remove(path)
    if half or (later and past is not None):
        names = ", ".join(str(path.relative_to(folder)) for path in (*half, *later))
        output.say(f"removed from {folder} what a run that ended early left unfinished: {names}")


def clear_unborn(folder: Path) -> None:
    """Remove what a start that was killed before it said what the run is has left in its folder. Raises OSError."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    half = [path for path in folder.glob(f"{record.FILE}.tmp-*") if not _is_held(path)]
    if inside and inside - {path.name for path in half} <= {METRICS_FILE, lock.FILE} and _has_no_metrics(folder):
        with lock.held(folder):
            for path in (*half, folder / METRICS_FILE):
                path.unlink(missing_ok=True)


def _has_no_metrics(folder: Path) -> bool:
    path = folder / METRICS_FILE
    return not path.exists() or not path.stat().st_size


def write_config(folder: Path, toml: str) -> None:
    """`resolved.toml`, whole or not at all. Raises OSError."""
    write_whole(folder / CONFIG_FILE, toml)


def resume_command(folder: Path) -> str:
    return shlex.join(["rmcli", "train", "--resume", "-o", str(folder)])


def newest_unfinished(root: Path) -> Path:
    """The run under `root` that was started last of those that have not finished and are not going on.

    Raises RmcliError where there is none.
    """
    told = {folder: record.read(folder) for folder in root.iterdir()} if root.is_dir() else {}
    unfinished = {
        folder: one["started"]
        for folder, one in told.items()
        if one is not None and one["result"].get("status") != record.FINISHED and not record.may_be_running(one)
    }
    if not unfinished:
        raise RmcliError(f"no run in {root}/ has ended early", "name one: rmcli train --resume -o RUN")
    return max(unfinished, key=lambda folder: unfinished[folder])


def _way_out(folder: Path) -> str:
    told = record.read(folder)
    if told is None or told["result"].get("status") == record.FINISHED or record.may_be_running(told):
        return "choose another with -o"
    return f"go on with it: {resume_command(folder)}, or choose another with -o"


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
