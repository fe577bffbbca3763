"""A worker's side of a benchmark: it says `ready`, then does one step for each `go` line on its stdin.

Imports neither rmcli nor TRL, so that workers of both environments can use it. Reports are JSON lines on what was
stdout when the worker started; whatever the libraries print goes to stderr.
"""

import json
import os
import resource
import sys
import time
from types import TracebackType
from typing import Any

TO_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


class Gate:
    """Made where this file is imported, so import it first. A crash is reported as {"error": "Type: first line"}."""

    def __init__(self) -> None:
        self._channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._before = sys.excepthook
        sys.excepthook = self._crashed
        self._started = 0.0

    def ready(self, **facts: Any) -> None:
        """Say what was loaded, and wait for the first `go`."""
        self._say({"ready": facts})
        self.wait()

    def wait(self) -> None:
        """Until the driver says `go`; the clock starts then. Leaves at once when there is nothing more to do."""
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        self._started = time.perf_counter()

    def stop(self) -> float:
        """Seconds since `go`, with the device's queue drained."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - self._started

    def report(self, **values: Any) -> None:
        """One step: its figures, and the largest memory so far, in bytes."""
        import torch

        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * TO_BYTES
        self._say({**values, "peak_rss": peak, "peak_device": on_device})

    def _say(self, value: dict[str, Any]) -> None:
        self._channel.write(json.dumps(value) + "\n")
        self._channel.flush()

    def _crashed(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        first = (str(error).strip() or kind.__name__).splitlines()[0]
        self._say({"error": f"{kind.__name__}: {first}"})
        self._before(kind, error, trace)


GATE = Gate()
