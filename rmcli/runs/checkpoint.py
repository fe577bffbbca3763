"""Checkpoints: written beside, synced, read back, renamed, pointed to, and only then do older ones go.

checkpoints/
  step-N/           *.safetensors (state.py), checkpoint.json (what is no tensor), rmcli.sha256 (all of them)
  best-step-N/      weights alone, of the best evaluation so far
  latest            the name of the one to go on from
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from rmcli.config.files import read_json
from rmcli.errors import RmcliError
from rmcli.model.hashes import first_fault, write_hashes
from rmcli.model.model_folder import OF_CHECKPOINT, OF_OLD_CHECKPOINT
from rmcli.packs.staging import sync
from rmcli.parallel import world
from rmcli.parallel.collectives import Group, from_first, on_first, together
from rmcli.runs import tensors as tensor_files
from rmcli.runs.whole_file import write_whole

FOLDER, LATEST = "checkpoints", "latest"
FORMAT_VERSION = 1
STEP, BEST = "step-", "best-step-"


def save(
    run_folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    keep: int,
    group: Group = None,
) -> Path:
    """Write `checkpoints/step-N`, point `latest` to it and keep the `keep` newest, and the best that `facts` names.

    All processes call it, each with what lies on it; the first one's facts are kept. Raises RmcliError with the bytes
    it would have taken; what was there before is then as it was.
    """
    path = _write(run_folder, f"{STEP}{step}", tensors, facts, group)

    def finish() -> None:
        try:
            _point_to(path)
        except OSError as error:
            raise _cannot_write(path, tensors, error) from error
        remove_older(path, facts, keep)

    on_first(finish, group)
    return path


def remove_older(path: Path, facts: Mapping[str, Any], keep: int) -> None:
    """Of this checkpoint's run keep it, the `keep` - 1 newest others, and the best that its `facts` name."""
    run_folder, best = path.parent.parent, (facts.get("best") or {}).get("step")
    gone = [old for old in list_checkpoints(run_folder) if old != path][: -(keep - 1) or None]
    gone += [old for old in list_checkpoints(run_folder, BEST) if step_of(old) != best]
    for old in gone:
        remove(old)


def save_best(run_folder: Path, step: int, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write `checkpoints/best-step-N`. An older best stays until a checkpoint knows of this one."""
    return _write(run_folder, f"{BEST}{step}", weights, facts, None)


def _write(
    run_folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], group: Group
) -> Path:
    folder = run_folder / FOLDER
    target, temporary = folder / name, folder / f"{name}.tmp-{from_first(os.getpid(), group)}"
    try:
        on_first(lambda: folder.mkdir(parents=True, exist_ok=True), group)
        tensor_files.write(temporary, tensors, group)
        with together(group):
            for path in tensor_files.own_files(temporary):
                sync(path)
        on_first(lambda: _seal(temporary, facts), group)
        if (wrong := tensor_files.first_difference(temporary, tensors, group)) is not None:
            raise OSError(f"{wrong} reads back otherwise than it was written: the disk is faulty")
        on_first(lambda: _rename(temporary, target), group)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _cannot_write(target, tensors, error) from error
    finally:
        if world.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _seal(temporary: Path, facts: Mapping[str, Any]) -> None:
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=2, allow_nan=False, ensure_ascii=False)
    (temporary / OF_CHECKPOINT).write_text(text + "\n", encoding="utf-8")
    write_hashes(temporary)
    for path in [*temporary.iterdir(), temporary]:
        sync(path)


def _rename(temporary: Path, target: Path) -> None:
    if target.exists():  # of a run that was killed before it pointed there
        remove(target)
    temporary.rename(target)
    sync(target.parent)


def _cannot_write(path: Path, tensors: Mapping[str, Tensor], error: Exception) -> RmcliError:
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
    needed = tensor_files.num_bytes(tensors)
    return RmcliError(f"cannot write checkpoint {path} of {needed:,} bytes: {reason}", "is the disk full?")


def _point_to(path: Path) -> None:
    write_whole(path.with_name(LATEST), path.name + "\n")
    sync(path.parent)


def remove(path: Path) -> None:
    """Half deleted it must not look complete."""
    gone = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.rename(gone)
    shutil.rmtree(gone)


def list_checkpoints(run_folder: Path, kind: str = STEP) -> list[Path]:
    """Complete checkpoints, oldest first; `kind` is STEP or BEST."""
    found = [path for path in (run_folder / FOLDER).glob(f"{kind}*") if path.name.removeprefix(kind).isdecimal()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def latest(run_folder: Path) -> Path | None:
    """The checkpoint to go on from; None where there is none. What `latest` does not point to is not finished."""
    try:
        name = (run_folder / FOLDER / LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        older = list_checkpoints(run_folder)
        if older and (older[-1] / OF_OLD_CHECKPOINT).exists():
            _refuse_pickled(older[-1])
        return None
    path = run_folder / FOLDER / name
    if not name.startswith(STEP) or not path.is_dir():
        others = ", ".join(old.name for old in list_checkpoints(run_folder)) or "none"
        raise RmcliError(
            f"{path.with_name(LATEST)} names {name!r}, which is no checkpoint there (there: {others})",
            "write the name of one that is there into it",
        )
    return path


def open_facts(path: Path) -> dict[str, Any]:
    """What is no tensor, once every file is proven by its hash; of several processes the first one does that for all.

    Raises RmcliError with both hashes for a damaged one, and for formats of other versions of rmcli.
    """
    if (path / OF_OLD_CHECKPOINT).exists():
        _refuse_pickled(path)
    if not (path / OF_CHECKPOINT).is_file() and not (path / "rmcli.sha256").is_file():
        raise RmcliError(f"{path} is no checkpoint of a run", "give RUN/checkpoints/step-N")
    if world.is_first() and (fault := first_fault(path)) is not None:
        older = [old for old in list_checkpoints(path.parent.parent) if step_of(old) < step_of(path)]
        way = f"to go on from {older[-1].name}, write that name into {path.with_name(LATEST)}" if older else None
        raise RmcliError(f"checkpoint {path} is damaged: {fault}", way)
    facts = read_json(path / OF_CHECKPOINT)
    if facts.get("format_version") != FORMAT_VERSION:
        raise RmcliError(
            f"checkpoint {path} has format {facts.get('format_version')}, this rmcli reads {FORMAT_VERSION}",
            "use the rmcli that wrote it (versions in its checkpoint.json)",
        )
    return facts


def _refuse_pickled(path: Path) -> None:
    raise RmcliError(
        f"checkpoint {path} is of an earlier rmcli, in a format that can run code: it is not read",
        "train again, or export it with that version",
    )
