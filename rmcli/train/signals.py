"""A first SIGINT, SIGTERM, SIGHUP or SIGUSR1 lets the step end; a second one leaves at once."""

import os
import select
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from rmcli import output
from rmcli.errors import ENDING_SIGNALS
from rmcli.parallel import collectives, parent, word, world

GRACE = 1.0  # seconds in which a second signal, or another process's failure, may end the run in the ordinary way


class Stop:
    """Whether a signal has come, asked between two steps: processes agree on the step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._is_said = False
        self._hand_back: Callable[[], None] = lambda: None

    def on_first(self, hand_back: Callable[[], None]) -> None:
        """What the first signal undoes."""
        self._hand_back = hand_back

    def come(self, number: int, is_agreed: bool = False) -> None:
        """A first signal: the next one takes its ordinary way. Of several processes the first one talks.

        Where it has come to another process this one's own may be on its way still, and is a first one, too.
        """
        self.signal = signal.Signals(number)
        if not is_agreed:
            self._hand_back()
        # A launcher of others sends SIGTERM, too, when a process has failed: then no checkpoint is written.
        if not self._is_said and (is_agreed or world.size() == 1 or parent.is_there()):
            self._is_said = True
            output.warn(f"{self.signal.name}: this step ends, and a checkpoint is written; once more leaves at once")

    def agreed(self) -> bool:
        """Whether a signal has come to any process. All ask at the same place of the same step, and hear the same."""
        number = collectives.largest_number(self.signal or 0)
        if number and world.size() > 1:
            self.come(number, is_agreed=True)
        return number > 0

    @property
    def exit_code(self) -> int:
        assert self.signal is not None
        return ENDING_SIGNALS[self.signal.name]


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While steps run, a signal only says that no further one is wanted. What is ignored (nohup) stays so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def restore() -> None:
        for number in taken:
            signal.signal(number, before[number])

    def first(number: int, frame: FrameType | None) -> None:
        stop.come(number)

    stop.on_first(restore)
    with _second_leaves(taken):
        for number in taken:
            signal.signal(number, first)
        try:
            yield stop
        finally:
            restore()  # once more changes nothing


@contextmanager
def _second_leaves(numbers: Collection[int]) -> Iterator[None]:
    """What Python cannot do: it runs a handler between two of its instructions, and a backward is one of them.

    The system writes the number of each signal into a pipe at once, and a thread of our own reads it.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(read, numbers, ended), name="signals", daemon=True)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)


def _watch(read: int, numbers: Collection[int], ended: threading.Event) -> None:
    seen = 0
    bytes_to_come = select.poll()
    bytes_to_come.register(read, select.POLLIN)
    while True:
        if not bytes_to_come.poll(GRACE * 1000 if seen else None):
            _leave_if_another_failed(ended)
            continue
        byte = os.read(read, 1)
        if not byte:
            return
        seen += byte[0] in numbers
        if seen == 2 and not ended.wait(GRACE):
            _leave(signal.Signals(byte[0]).name)


def _leave_if_another_failed(ended: threading.Event) -> None:
    """The signal was how a launcher ends those that are left: a step that waits for a lost process never ends."""
    told = word.said()
    if told is not None and told.exit_code not in ENDING_SIGNALS.values() and not ended.wait(GRACE):
        os._exit(told.exit_code)


def _leave(name: str) -> None:
    """As a kill does: a later start clears what is half written."""
    try:
        os.write(2, f"error: {name} once more: left at once, in the middle of a step or a checkpoint\n".encode())
    finally:
        os._exit(ENDING_SIGNALS[name])
