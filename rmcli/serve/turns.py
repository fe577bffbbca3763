"""Work of several threads in turn: who has much to do does it in pieces, and who comes meanwhile waits for one."""

import threading
from collections import deque


class Turns:
    """A `with` statement is one turn: `at_once` of them at the same time, in the order in which they were asked for.

    Who ends a turn hands it to whoever waits longest; of a semaphore, a thread that asks again at once gets it again.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
