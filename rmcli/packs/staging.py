"""A folder that is there whole or not at all: written beside its place, synced, and put there in one step.

While it is written it is called `.NAME.tmp-PID`. On Linux it then changes places with an older folder in one system
call. Elsewhere that takes two renames, and a process killed between them leaves the older folder as `.NAME.old-PID`:
`put_back`, which every reader and writer calls, gives it its name again.
"""

import ctypes
import errno
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from rmcli import output
from rmcli.errors import ConfigError
from rmcli.output_files import abandoned

_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_FDCWD = -100  # from Linux' fcntl.h
_RENAME_EXCHANGE = 2  # from linux/fs.h


def refuse_own_folder(folder: Path) -> None:
    """Raise ConfigError for the folder one is in, and for those above it: a rename would take it away."""
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ConfigError(
            f"{folder} is the folder you are in, or above it: it cannot be replaced", "name a new one with -o"
        )


def check_writable(folder: Path) -> None:
    """Raise OSError where nothing can be made beside `folder`, without trying it."""
    above = next(parent for parent in Path(os.path.realpath(folder)).parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


class StagedFolder:
    """`path` is where to write; `publish` makes it `folder`, `discard` leaves nothing. All raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = (
            Path(os.path.realpath(folder)) if folder.is_symlink() else folder
        )  # a link goes on pointing there
        refuse_own_folder(folder)
        put_back(self.folder)
        self._made = [parent for parent in self.folder.absolute().parents if not parent.exists()]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("tmp", "old"):
            for leftover in abandoned(self.folder, kind):
                shutil.rmtree(leftover)
        self.path = self.folder.with_name(f".{self.folder.name}.tmp-{os.getpid()}")
        self._replaced = self.folder.with_name(f".{self.folder.name}.old-{os.getpid()}")
        self.path.mkdir()

    def publish(self, overwrite: bool) -> None:
        """Sync everything and put it in place. Without `overwrite` a folder that holds something is an error."""
        for path in [*self.path.rglob("*"), self.path]:
            sync(path)
        if not overwrite or not self.folder.exists():
            self.path.rename(self.folder)
        elif _exchange(self.path, self.folder):
            sync(self.folder.parent)
            shutil.rmtree(self.path)  # what was there before
        else:
            self.folder.rename(self._replaced)
            self.path.rename(self.folder)
            sync(self.folder.parent)
            shutil.rmtree(self._replaced)
        for parent in (self.folder, *self._made):
            sync(parent.parent)

    def discard(self) -> None:
        """Remove what was written and the parents made for it; does nothing once `publish` is done."""
        put_back(self.folder)
        if self._replaced.exists():  # the new one is in its place
            shutil.rmtree(self._replaced)
        if self.path.exists():
            shutil.rmtree(self.path)
            with suppress(OSError):  # another process may have put something there meanwhile
                for parent in self._made:  # innermost first
                    parent.rmdir()


def put_back(folder: Path) -> None:
    """Undo the first of two renames when the process that made it is gone. Raises OSError."""
    if folder.exists():
        return
    for old in abandoned(folder, "old")[:1]:
        with suppress(FileNotFoundError):  # another rank was faster
            old.rename(folder)
            output.warn(f"{folder} was being replaced when a command ended too early: the older one is back")


def put_back_all(root: Path) -> None:
    """`put_back` for every folder directly under `root`."""
    for old in root.glob(".*.old-*"):
        put_back(root / old.name[1:].rpartition(".old-")[0])


def sync(path: Path) -> None:
    """Have the file's or folder's content on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step. False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than the system call
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))
