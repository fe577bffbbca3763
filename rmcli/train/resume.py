"""`rmcli train --resume`: which run goes on, with what, and from where."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmcli.config.resolve import read_config_file, resolve
from rmcli.errors import ConfigError, RmcliError
from rmcli.runs import checkpoint, record
from rmcli.runs.folder import CONFIG_FILE, MODEL, resume_command
from rmcli.train.job import Job, build_job
from rmcli.train.past import Past, data_of


def is_run(folder: Path) -> bool:
    """Whether an earlier start has come as far as to say what the run is."""
    return record.read(folder) is not None and (folder / CONFIG_FILE).is_file()


def resumed_job(
    folder: Path,
    data: Path | None,
    preset: str | None,
    files: Sequence[Path],
    settings: Sequence[str],
    processes: int = 1,
) -> Job:
    """The run of this folder, with its own configuration and data but for what is given and may change.

    Without a checkpoint it begins again. Raises ConfigError for what would make it another run.
    """
    base = replace(read_config_file(folder / CONFIG_FILE), explicit=False)
    name = str(base.values["name"])
    if preset is not None and preset != name:
        raise ConfigError(f"preset {preset}, but {folder} is a run of {name}", "leave --preset out to go on with it")
    resolved = replace(resolve(None, files, settings, base=base), name=name)
    path = checkpoint.latest(folder)
    if path is None and _status(folder) == record.FINISHED:
        raise RmcliError(f"{folder} is finished and has no checkpoint to go on from", "start a new run")
    past = None if path is None else Past(path, checkpoint.open_facts(path))
    return build_job(resolved, data or data_of(folder), folder, past, goes_on=True, processes=processes)


def check_untouched(job: Job) -> None:
    """Raise RmcliError where another process has gone on with the run since this one read how far it was."""
    last = checkpoint.latest(job.run_folder)
    if last is not None and (job.past is None or last != job.past.checkpoint):
        raise RmcliError(
            f"{job.run_folder} has meanwhile gone on to {last.name}", f"look again: {resume_command(job.run_folder)}"
        )


def finished(folder: Path) -> dict[str, Any] | None:
    """The figures of a run that has ended as it should and still has its model; None of any other."""
    told = record.read(folder)
    has_model = _status(folder) == record.FINISHED and (folder / MODEL).is_dir()
    return told["result"] if told is not None and has_model else None


def _status(folder: Path) -> str | None:
    told = record.read(folder)
    return None if told is None else told["result"].get("status")
