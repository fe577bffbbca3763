"""run.json: what a run is made of, and how it ended."""

import json
import math
import os
import platform
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from rmcli import __version__
from rmcli.output_files import is_another
from rmcli.runs.whole_file import write_whole

FILE = "run.json"
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


def begin(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json of a run that begins: its `facts`, the time, the process and the versions. Raises OSError."""
    _write(
        folder,
        {
            **facts,
            "started": _now(),
            "process": _process(),
            "versions": versions(),
            "result": {"status": RUNNING},
        },
    )


def go_on(folder: Path, facts: Mapping[str, Any], anew: Mapping[str, Any] | None = None) -> None:
    """A run that goes on: `facts` of this start join those of earlier ones under `resumed`; `anew` replaces what was
    told of the run. Raises OSError.
    """
    told = read(folder) or {}
    told.pop("ended", None)
    resumed = [*told.get("resumed", []), {"at": _now(), **facts, "versions": versions()}]
    _write(folder, {**told, **(anew or {}), "resumed": resumed, "process": _process(), "result": {"status": RUNNING}})


def versions() -> dict[str, str]:
    """Of what computes a run."""
    return {
        "rmcli": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _process() -> dict[str, Any]:
    return {"id": os.getpid(), "host": socket.gethostname()}


def end(folder: Path, status: str, values: Mapping[str, Any]) -> None:
    """How the run of this folder ended: its last figures, or its error. Raises OSError."""
    told = read(folder) or {}
    _write(folder, {**told, "ended": _now(), "result": {"status": status, **json_values(values)}})


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no numbers that are not finite: none instead."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: finite(value) for name, value in values.items()}


def read(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none, or it is not ours."""
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(told, dict) and isinstance(told.get("result"), dict) and isinstance(told.get("process"), dict)
    return told if ours else None


def may_be_running(told: Mapping[str, Any]) -> bool:
    """Whether the run has not ended and its process is there, or on another machine, of which nothing is known."""
    if told["result"].get("status") != RUNNING:
        return False
    process = told["process"]
    number = process.get("id")
    return process.get("host") != socket.gethostname() or (isinstance(number, int) and is_another(number))


def how_it_ended(told: Mapping[str, Any]) -> str:
    """`finished`, `failed: ...`, `was killed`, or that it still runs, to follow "a run that"."""
    result = told["result"]
    status = result.get("status")
    if status == RUNNING:
        process = told["process"]
        here = f"runs (process {process.get('id')} on {process.get('host')})"
        return here if may_be_running(told) else "was killed"
    if status == FAILED:
        return f"failed ({result.get('error')})"
    return "was interrupted" if status == INTERRUPTED else "finished"


def _write(folder: Path, values: Mapping[str, Any]) -> None:
    write_whole(folder / FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
