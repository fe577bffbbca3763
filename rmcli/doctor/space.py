"""Room: on the disks that rmcli writes to, and in memory."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rmcli.doctor.finding import GIB, Finding, Verdict, load

TOPIC = "space"
LITTLE_DISK, NO_DISK = 20 * GIB, GIB  # of the default preset one checkpoint is 2 GB, its model 0.5
LITTLE_MEMORY = 4 * GIB
_CACHES = "caches fill as models and data are loaded"


def look() -> Iterator[Finding]:
    yield folder("current folder", Path.cwd(), "data and runs go here, or where -o says")
    yield folder("runs", Path("runs"), "-o puts a run elsewhere; rmcli keeps train.save_total_limit checkpoints")
    yield folder("rmcli's cache", _rmcli_cache(), _CACHES)
    home, broken = _hub_home()
    if home is None:
        yield Finding(TOPIC, "Hub cache", "note", f"not known: {broken}")
    else:
        yield folder("Hub cache", home, f"{_CACHES}; HF_HOME moves it")
    yield _memory()


def _rmcli_cache() -> Path:
    from rmcli.packs.remote import CACHE

    return CACHE.parent.expanduser()


def _hub_home() -> tuple[Path | None, str | None]:
    constants, broken = load("huggingface_hub.constants")
    return (None, broken) if constants is None else (Path(constants.HF_HOME), None)


def folder(name: str, path: Path, hint: str) -> Finding:
    """Of a folder that is not there yet: of where it would be made."""
    path = path.absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    usage = shutil.disk_usage(there)
    writable = os.access(there, os.W_OK)
    said = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {path}"
    said += "" if there == path else " (not there yet)"
    said += "" if writable else ", which cannot be written"
    facts = {
        "path": str(path),
        "exists": there == path,
        "free": usage.free,
        "total": usage.total,
        "writable": writable,
    }
    verdict: Verdict = verdict_on(usage.free) if writable else "note"
    return Finding(TOPIC, name, verdict, said, None if verdict == "ok" else hint, facts)


def verdict_on(free: int) -> Verdict:
    return "fault" if free < NO_DISK else "note" if free < LITTLE_DISK else "ok"


def _memory() -> Finding:
    """What this process can have, by control groups and limits too, of what the host has."""
    import psutil

    from rmcli.model.limits import host_memory

    free, total = host_memory(), psutil.virtual_memory().total
    little = free < LITTLE_MEMORY
    hint = "rmcli train -n says what a run needs" if little else None
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB can be had"
    return Finding(TOPIC, "memory", "note" if little else "ok", said, hint, {"free": free, "total": total})
