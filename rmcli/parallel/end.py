"""How one of several processes ends when their work failed: at once, with what it has said.

It leaves its group of processes as it is, since to take that down may wait for the others. torch's threads of it live
on, and one that asks for the interpreter while Python clears itself up aborts the process (SIGABRT) in place of its
exit code. Imports no torch.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Seconds in which the others read who has said why, where this process has the store in which that is written.
_TO_READ = 1.0

_group_is_left = _has_store = False


def leave_group(has_store: bool) -> None:
    """This process will end, with its group as it is; `has_store`: the store where they met ends with it."""
    global _group_is_left, _has_store
    _group_is_left, _has_store = True, has_store


@contextmanager
def at_once() -> Iterator[None]:
    """Around all that this process does: where it has left a group, nothing of Python's own end comes after it."""
    try:
        yield
    except BaseException as error:
        if not _group_is_left:
            raise
        code = _exit_code(error)
        time.sleep(_TO_READ if _has_store else 0)
        os._exit(code)


def _exit_code(error: BaseException) -> int:
    """As Python ends of it: with a traceback, unless it is an exit."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads
            stream.flush()
    code = error.code if isinstance(error, SystemExit) else 1
    return code if isinstance(code, int) else int(code is not None)
