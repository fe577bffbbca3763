"""Folders that mean harm: whatever of them runs leaves the file RAN behind."""

import json
import os
from pathlib import Path
from typing import Any

from rmcli.model.hashes import write_hashes
from support.cli import Result, run_cli
from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"
ROWS = BEFORE / "data" / "eval.jsonl"


class Payload:
    """What runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def marker() -> Path:
    return Path("RAN").absolute()


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_one_line(*arguments: object) -> str:
    """What the one error line of a command says, which leaves nothing behind that ran."""
    result = run_cli(*arguments)
    said(result)
    assert result.code in (1, 2), result.stderr
    return said(result)


def said(result: Result) -> str:
    """The error line and its hint."""
    assert not marker().exists()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return "\n".join([*errors, *(line for line in result.stderr.splitlines() if line.startswith("hint: "))])


def sealed(folder: Path) -> Path:
    """With hashes that fit: who sends a folder can write those, too."""
    write_hashes(folder)
    return folder
