"""How a command ends: what users, streams, signals and the system do to it becomes one line and an exit code."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

from rmcli import output
from rmcli.errors import ENDING_SIGNALS, INTERRUPTED, TERMINATED, FailedElsewhere, RmcliError, Terminated
from rmcli.parallel import word


@contextmanager
def one_line_for_everything() -> Iterator[None]:
    """Errors become `error:` and `hint:` lines and typer.Exit; Ctrl-C becomes 130, SIGTERM 143.

    Only faults of rmcli's own pass as they are.
    """
    try:
        with _signals_raise():
            yield
    except FailedElsewhere as error:
        if word.take_for_peer(error):
            output.error(error.message, error.hint)
        raise typer.Exit(error.exit_code) from None
    except RmcliError as error:
        raise _said(error.message, error.hint, error.exit_code) from None
    except KeyboardInterrupt:
        raise _said("interrupted", None, INTERRUPTED) from None
    except Terminated:
        raise _said("terminated", None, TERMINATED) from None
    except BrokenPipeError:  # who reads has had enough, as head has
        raise typer.Exit(1) from None
    except OSError as error:
        raise _said(_in_words(error), None, 1) from None
    except MemoryError:
        raise _said("out of memory", None, 1) from None
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except Exception as error:
        word.take(f"{type(error).__name__}: {error}", 1)  # whose traceback is seen
        raise


def _said(message: str, hint: str | None, exit_code: int) -> typer.Exit:
    """The end of the command, and why: of several processes one says it."""
    if word.take(message, exit_code):
        output.error(message, hint)
    return typer.Exit(exit_code)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """While a command runs, signals to end raise where it is. One that is ignored (nohup) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)]
    wanted = {number: signal.default_int_handler if number == signal.SIGINT else _terminate for number in numbers}
    before = {number: signal.getsignal(number) for number in wanted}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, wanted[number])
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _in_words(error: OSError) -> str:
    """The file and what is wrong with it. Of the streams only stdin gets here: output.py tells of the others."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return "cannot read stdin: it is closed" if error.errno == errno.EBADF else reason
    return f"{error.filename}: {reason}"
