"""The command `rmcli`, and `python -m rmcli`, which torchrun and accelerate launch."""

import os
import signal
from types import FrameType


def main() -> None:
    """Ctrl-C leaves at once while nothing has begun: a command that has something to clear takes over from there."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from rmcli.cli.app import main as run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"error: interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    main()
