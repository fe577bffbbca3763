"""What doctor found, and importing what may be broken."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from types import ModuleType
from typing import Any, Literal

from rmcli.errors import RmcliError, explained_by

Verdict = Literal["ok", "note", "fault"]
VERDICTS: tuple[Verdict, ...] = ("ok", "note", "fault")  # each worse than the one before
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing of this machine. A note is worth knowing; a fault will stop or spoil a run.

    `facts` are the figures behind `said`, for programs: versions, bytes, flags.
    """

    topic: str
    name: str
    verdict: Verdict
    said: str
    hint: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def worst(findings: Iterable[Finding]) -> Verdict:
    there = {finding.verdict for finding in findings}
    for verdict in reversed(VERDICTS):
        if verdict in there:
            return verdict
    return "ok"


def load(name: str) -> tuple[ModuleType | None, str | None]:
    """The module, or in one line why it cannot be imported: whatever it raises. What it prints goes nowhere."""
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            explained_by(lambda error: RmcliError(f"{type(error).__name__}: {_one_line(error)}")),
        ):
            warnings.simplefilter("ignore")
            return import_module(name), None
    except RmcliError as error:
        return None, error.message
    except SystemExit as error:
        return None, f"it ends the program ({_one_line(error)})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
