"""How a run ends: run.json tells it, and an error or Ctrl-C names what was kept and what can be done with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rmcli import output
from rmcli.backbones.lineage import lineage
from rmcli.errors import INTERRUPTED, TERMINATED, RmcliError, Stopped, Terminated
from rmcli.model import fp8
from rmcli.model.attention import fa3
from rmcli.parallel import world
from rmcli.parallel.word import peers_explained
from rmcli.runs import checkpoint, record
from rmcli.runs.folder import resume_command
from rmcli.train.eval_sets import places_of
from rmcli.train.job import Job
from rmcli.train.out_of_memory import memory_explained
from rmcli.train.signals import Stop


@contextmanager
def recorded(job: Job, command: str | None) -> Iterator[dict[str, Any]]:
    """run.json from begin to end. What is put into the mapping that is given are the figures of a finished run."""
    figures: dict[str, Any] = {}
    try:
        _begin(job, command)
        with memory_explained(job), peers_explained():
            yield figures
        if world.is_first():
            record.end(job.run_folder, record.FINISHED, figures)
    except OSError as error:
        _end(job, record.FAILED, {"error": str(error)})
        message = f"cannot write into {job.run_folder}: {error.strerror or error}"
        raise RmcliError(message + _kept(job), _way_on(job, "is the disk full?")) from error
    except (KeyboardInterrupt, Terminated) as error:
        _end(job, record.INTERRUPTED, {})
        is_ctrl_c = isinstance(error, KeyboardInterrupt)
        message = f"{'interrupted' if is_ctrl_c else 'terminated'}{_kept(job) or '; no checkpoint yet'}"
        raise Stopped(message, _way_on(job, None), INTERRUPTED if is_ctrl_c else TERMINATED) from None
    except Stopped:
        _end(job, record.INTERRUPTED, {})
        raise
    except RmcliError as error:
        _end(job, record.FAILED, {"error": error.message})
        error.message, error.hint = error.message + _kept(job), _way_on(job, error.hint)
        raise


def stopped(job: Job, stop: Stop, step: int) -> Stopped:
    """After the step in which a signal came; its checkpoint is written."""
    assert stop.signal is not None
    message = f"stopped by {stop.signal.name} after step {step} of {job.total_steps}{_kept(job)}"
    return Stopped(message, _way_on(job, None), stop.exit_code)


def _begin(job: Job, command: str | None) -> None:
    if not world.is_first():
        return
    if job.past is not None:
        facts = {
            "command": command,
            "step": job.past.step,
            "device": _device_name(job.device),
            **_kernels(job),
        }
        record.go_on(job.run_folder, facts, {"eval_sets": places_of(job.eval_sets)})
        return
    model = job.config.model
    data = {"folder": str(job.data_folder.absolute()), "manifest_sha256": job.manifest["manifest_sha256"]}
    facts = {
        "command": command,
        "preset": job.resolved.name,
        "base": lineage(str(model.pretrained_model_name_or_path), model.revision),
        "data": data,
        "eval_sets": places_of(job.eval_sets),
        "device": _device_name(job.device),
        "processes": job.spread.processes,
        **_kernels(job),
    }
    record.begin(job.run_folder, facts)


def _kernels(job: Job) -> dict[str, Any]:
    """The packages whose kernels compute this run; nothing where all are torch's own."""
    has_fa3 = job.config.model.attention == "fa3" and job.batch_choice.kind == "packed"
    found = {
        **({"model.attention=fa3": fa3.package()} if has_fa3 else {}),
        **({"train.fp8": fp8.package()} if job.config.train.fp8 != "none" else {}),
    }
    return {"kernels": found} if found else {}


def _device_name(device: torch.device) -> str:
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def _end(job: Job, status: str, values: dict[str, Any]) -> None:
    if not world.is_first():
        return
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
    way = f"go on with: {resume_command(job.run_folder)}"
    return way if hint is None else f"{hint} {way}"
