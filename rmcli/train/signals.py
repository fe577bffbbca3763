"""A first SIGINT, SIGTERM, SIGHUP or SIGUSR1 lets the step end; a second one leaves at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rmcli import output
from rmcli.errors import INTERRUPTED, TERMINATED

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class Stop:
    """Whether a signal has come, asked between two steps: processes can then agree on the step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def is_wanted(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signal == signal.SIGINT else TERMINATED


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While steps run, a signal only says that no further one is wanted. What is ignored (nohup) stays so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in taken:
            signal.signal(number, before[number])

    def first(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        restore()
        output.warn(f"{stop.signal.name}: this step ends, and a checkpoint is written; once more leaves at once")

    for number in taken:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        if not stop.is_wanted:
            restore()
