"""The command `rmcli`, and `python -m rmcli`, which torchrun and accelerate launch."""

import os
import signal
from types import FrameType

from rmcli.errors import ENDING_SIGNALS, INTERRUPTED
from rmcli.parallel import end, parent


def main() -> None:
    begin()
    with end.at_once():
        from rmcli.cli.app import main as run

        run()


def begin() -> None:
    """Ctrl-C and its like leave at once while nothing has begun: a command with something to clear takes over."""
    for name in ENDING_SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _leave)
    parent.allow_signals()
    parent.end_with_it()


def _leave(number: int, frame: FrameType | None) -> None:
    code = ENDING_SIGNALS[signal.Signals(number).name]
    try:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            os.write(2, b"error: interrupted\n" if code == INTERRUPTED else b"error: terminated\n")
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
