"""The process that scores a folder's golden conversations: a fresh one, without this package where that can be."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rmcli.errors import RmcliError

_HERE = Path(__file__).parent
Answer = dict[str, Any]


def answers(folder: Path, cases: Iterable[Answer], by: str) -> Iterator[tuple[Answer | None, Answer]]:
    """What `plain.measure` says of each case; None is the tokenizer, which comes first.

    `by` is transformers, or rmcli for what that lacks. A process that dies has a fault in the case it was at.
    """
    asked: list[Answer | None] = [None, *cases]
    done = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            with _started(by, said) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                json.dump({"folder": str(folder.absolute()), "cases": asked[1:]}, process.stdin)
                process.stdin.close()
                for line in process.stdout:
                    yield asked[done], json.loads(line)
                    done += 1
        except OSError as error:
            raise RmcliError(f"cannot start {sys.executable}: {error.strerror or error}") from error
        if process.returncode != 0:
            said.seek(0)
            yield asked[done], {"fault": _why(process.returncode, said.read())}


def _started(by: str, said: Any) -> "subprocess.Popen[str]":
    script = ["-P", str(_HERE / "plain.py")] if by == "transformers" else ["-m", "rmcli.ship.own"]
    path = os.pathsep.join(filter(None, (str(_HERE.parent.parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | ({} if by == "transformers" else {"PYTHONPATH": path})
    return subprocess.Popen(
        [sys.executable, *script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        encoding="utf-8",
        env=environment | {"HF_HUB_OFFLINE": "1"},
    )


def _why(code: int, said: str) -> str:
    """The last line of a traceback; where the system has killed the process, by which signal."""
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}: too little memory?"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with exit code {code}"
