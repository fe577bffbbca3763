"""metrics.jsonl: one JSON object a line, for each log line and each evaluation of a run."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rmcli import output
from rmcli.errors import RmcliError

METRICS_FILE = "metrics.jsonl"


def open_metrics(run_folder: Path, kept: int | None) -> TextIO:
    """To write on. Of a run that goes on the first `kept` bytes stay: later steps come again. Raises OSError."""
    path = run_folder / METRICS_FILE
    if kept is None:
        return path.open("w", encoding="utf-8")
    there = path.stat().st_size if path.exists() else 0
    if there < kept:
        output.warn(
            f"{path} has {there:,} bytes, and had {kept:,} at the checkpoint: lines of earlier steps are lost"
        )
    else:
        os.truncate(path, kept)
    return path.open("a", encoding="utf-8")


def add_metrics(file: TextIO | None, values: Mapping[str, Any]) -> None:
    """One line, on disk as far as the process can tell. Raises RmcliError, with no half line left, if it is not.

    Of several processes only the first has the file.
    """
    if file is None:
        return
    line = (json.dumps(values) + "\n").encode()
    before = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(line)
        while rest:  # past the file object, whose buffer would be written again when it is closed
            rest = rest[os.write(file.fileno(), rest) :]
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(file.fileno(), before)
            os.lseek(file.fileno(), before, os.SEEK_SET)
        reason = error.strerror or error
        raise RmcliError(f"cannot write {file.name}: {reason} ({len(line)} bytes)", "is the disk full?") from error


def evaluation_at(run_folder: Path, step: int) -> dict[str, float]:
    """The figures of the evaluation after this step, by name without `eval_`: numbers that are finite.

    Empty where there was none, or the file is gone.
    """
    try:
        lines = (run_folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, float] = {}
    for line in lines:
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and values.get("step") == step and "eval_accuracy" in values:
                found = {key[5:]: one for key, one in values.items() if key.startswith("eval_") and _is_figure(one)}
    return found


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
