"""The `rmcli train --num-processes N` that started this process: it watches over all of them, and ends with them."""

import os
import signal
import threading

from rmcli.errors import ENDING_SIGNALS

PIPE = "RMCLI_PARENT"  # the end of a pipe whose other end the parent alone has: it closes when the parent ends


def is_there() -> bool:
    """Whether this process was started by `--num-processes`."""
    return PIPE in os.environ


def allow_signals() -> None:
    """Signals to end, which wait since the parent started this process, may come: they are handled from here on."""
    if is_there():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {getattr(signal, name) for name in ENDING_SIGNALS})


def end_with_it() -> None:
    """From now on this process ends when its parent does, in whatever way that ends."""
    if is_there():
        threading.Thread(target=_wait, args=(int(os.environ[PIPE]),), name="parent", daemon=True).start()


def _wait(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)
