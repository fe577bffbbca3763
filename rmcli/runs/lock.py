"""One process at a time writes a run folder: a file that the system unlocks when its process ends, in any way."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rmcli import output
from rmcli.errors import RmcliError

FILE = "lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's own. Raises RmcliError with the holder's process and host."""
    path = folder / FILE
    descriptor = _take(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def clear(folder: Path) -> None:
    """Remove the lock of a process that was killed right after its run had finished. One that is held stays."""
    if (folder / FILE).exists():
        with suppress(RmcliError, OSError), held(folder):
            pass


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RmcliError(
                f"{path.parent} is held by a run that is going on ({_holder(path)})", "wait for it, or end it"
            ) from None
        except OSError as error:  # some network file systems have no locks
            output.warn(f"{path} cannot be locked ({error.strerror}): two runs in one folder would not be seen")
            return descriptor
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder has just removed it


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {told['process']} on {told['host']}"
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return "an unknown process"
