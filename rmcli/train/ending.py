"""How a run ends: run.json tells it, and an error or Ctrl-C names what was kept and what can be done with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rmcli import output
from rmcli.errors import Interrupted, RmcliError
from rmcli.runs import checkpoint, record
from rmcli.train.job import Job
from rmcli.train.out_of_memory import memory_explained


@contextmanager
def recorded(job: Job, command: str | None) -> Iterator[dict[str, Any]]:
    """run.json from begin to end. What is put into the mapping that is given are the figures of a finished run."""
    data = {"folder": str(job.data_folder.absolute()), "manifest_sha256": job.manifest["manifest_sha256"]}
    facts = {"command": command, "preset": job.resolved.name, "data": data, "device": _device_name(job.device)}
    figures: dict[str, Any] = {}
    try:
        record.begin(job.run_folder, facts)
        with memory_explained(job):
            yield figures
        record.end(job.run_folder, record.FINISHED, figures)
    except OSError as error:
        _end(job, record.FAILED, {"error": str(error)})
        message = f"cannot write into {job.run_folder}: {error.strerror or error}"
        raise RmcliError(message + _kept(job), _way_on(job, "is the disk full?")) from error
    except KeyboardInterrupt:
        _end(job, record.INTERRUPTED, {})
        raise Interrupted(f"interrupted{_kept(job) or '; no checkpoint yet'}", _way_on(job, None)) from None
    except RmcliError as error:
        _end(job, record.FAILED, {"error": error.message})
        error.message, error.hint = error.message + _kept(job), _way_on(job, error.hint)
        raise


def _device_name(device: torch.device) -> str:
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def _end(job: Job, status: str, values: dict[str, Any]) -> None:
    try:
        record.end(job.run_folder, status, values)
    except OSError as error:
        output.warn(f"{job.run_folder / record.FILE} does not say how the run ended: {error.strerror or error}")


def _kept(job: Job) -> str:
    """The last checkpoint, as the end of a sentence; empty where there is none."""
    found = checkpoint.list_checkpoints(job.run_folder)
    return f"; the last checkpoint is {found[-1]}" if found else ""


def _way_on(job: Job, hint: str | None) -> str | None:
    if not checkpoint.list_checkpoints(job.run_folder):
        return hint
    use = "a checkpoint holds weights, optimizer and step: docs/runs.md makes a model folder of it"
    return use if hint is None else f"{hint} {use}"
