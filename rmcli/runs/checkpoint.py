"""Checkpoints: written beside, synced, renamed, and only then are old ones deleted."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from transformers import PreTrainedModel

from rmcli.errors import RmcliError
from rmcli.packs.staging import sync

FOLDER = "checkpoints"


def state_of(network: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


def save(run_folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `checkpoints/step-N` and keep the `keep` newest. `state` is nested dicts of tensors and plain values."""
    folder = run_folder / FOLDER
    target = folder / f"step-{step}"
    temporary = folder / f"step-{step}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_process():
            save_state(state, storage_writer=FileSystemWriter(temporary, sync_files=True), no_dist=True)
        temporary.rename(target)
        sync(folder)
    except (OSError, RuntimeError, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RmcliError(f"cannot write checkpoint {target}: {reason}", "is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in list_checkpoints(run_folder)[:-keep]:
        gone = old.with_name(f"{old.name}.tmp-{os.getpid()}")
        old.rename(gone)  # half deleted it must not look complete
        shutil.rmtree(gone)
    return target


@contextmanager
def _one_process() -> Iterator[None]:
    """`no_dist=True` says that one process reads or writes; DCP warns of it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def list_checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    steps = {path: path.name.removeprefix("step-") for path in (run_folder / FOLDER).glob("step-*")}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def load(path: Path, state: dict[str, Any]) -> None:
    """Fill `state`, which must have the structure that was saved, from a checkpoint."""
    with _one_process():
        load_state(state, storage_reader=FileSystemReader(path), no_dist=True)
