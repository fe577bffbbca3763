"""A file that a command writes: never over what it reads or another's work, and there whole or not at all."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rmcli.errors import ConfigError, RmcliError
from rmcli.output import Lines

_BEGINNING = 65536  # bytes: enough to tell what a file is


@dataclass(frozen=True)
class OutputFile:
    """Where a command writes, under one rule for all of them.

    `what` it writes is said in words, and `is_such` tells it by the beginning of a file. `inputs` are the files and
    folders read ("-" is stdin). An existing file is replaced only with `overwrite`, and only where it is such a one:
    a user's own file is never lost. A device or a pipe is written as it is.
    """

    path: Path
    what: str
    is_such: Callable[[str], bool]
    overwrite: bool = False
    inputs: Sequence[str | Path] = ()

    @property
    def target(self) -> Path:
        """The file itself: a link goes on pointing there."""
        return Path(os.path.realpath(self.path))

    @property
    def is_direct(self) -> bool:
        """Whether it is a device or a pipe, which is written as it is."""
        return self.target.exists() and not self.target.is_file()

    def check(self) -> None:
        """Before any work. Raises ConfigError where the file must not be written, RmcliError where it cannot be."""
        self.check_not_read(self.path)
        with self.explained():
            self._check_place()

    def check_not_read(self, path: Path) -> None:
        """Raises ConfigError where `path`, which the command writes too, is one of its inputs."""
        for name in self.inputs:
            if _is_same(name, path):
                read = "stdin" if name == "-" else f"the input {name}"
                raise ConfigError(f"{path} is {read}: it would be replaced", "write another file")

    @contextmanager
    def open(self) -> Iterator[Lines]:
        """The file to write, as UTF-8. It takes its place when the context ends well; else nothing is left."""
        self.check()
        target, direct = self.target, self.is_direct
        temporary = target if direct else target.with_name(f".{target.name}.tmp-{os.getpid()}")
        try:
            with self.explained():
                if not direct:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    for leftover in abandoned(target, "tmp"):
                        leftover.unlink()
                file = temporary.open("w", encoding="utf-8", errors="json_escapes")
            try:
                yield _Explained(self, file)
            finally:
                with self.explained():
                    file.close()
            if not direct:
                self.check()  # once more: something may stand there now
                with self.explained():
                    temporary.replace(target)
        finally:
            if not direct and os.path.lexists(temporary):
                temporary.unlink()

    def _check_place(self) -> None:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            self._try_to_write()
            return
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{self.path} is a folder", "name a file")
        if not stat.S_ISREG(mode):
            return
        if not self.overwrite:
            raise ConfigError(
                f"{self.path} exists and is left alone", f"write another file, or --overwrite earlier {self.what}"
            )
        with self.path.open("rb") as file:
            beginning = file.read(_BEGINNING).decode("utf-8", errors="replace")
        if beginning.strip() and not self.is_such(beginning):
            raise ConfigError(
                f"{self.path} holds no {self.what} and is left alone, --overwrite or not", "write another file"
            )
        self._try_to_write()

    def _try_to_write(self) -> None:
        """Make a file where this one will be, or where its folder will be, and take it away again."""
        target = Path(os.path.realpath(self.path))
        place = next(parent for parent in target.parents if parent.exists())
        trial = place / f".{target.name}.try-{os.getpid()}"
        trial.open("xb").close()
        trial.unlink()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What the system refuses inside becomes an RmcliError that names the file."""
        try:
            yield
        except OSError as error:
            raise RmcliError(f"cannot write {self.path}: {error.strerror or error}", "write another file") from error


class _Explained:
    """An open file whose errors say what could not be written; errors of who writes stay their own."""

    def __init__(self, target: OutputFile, file: TextIO) -> None:
        self._target, self._file = target, file

    def write(self, text: str) -> None:
        with self._target.explained():
            self._file.write(text)

    def flush(self) -> None:
        with self._target.explained():
            self._file.flush()


def check_stdout(inputs: Sequence[str | Path]) -> None:
    """Raises ConfigError where stdout goes on in a file that is read: it would never come to its end."""
    for name in inputs:
        if name != "-" and _is_same(name, 1):
            raise ConfigError(f"stdout is the input {name}: it would be read as it grows", "write another file")


def abandoned(target: Path, kind: str) -> list[Path]:
    """What is called `.NAME.kind-PID` beside `target` and whose process is gone, or was an earlier one of our number.

    Raises OSError.
    """
    if not target.parent.is_dir():
        return []
    start = f".{target.name}.{kind}-"
    found = {path: path.name.removeprefix(start) for path in target.parent.iterdir() if path.name.startswith(start)}
    return sorted(path for path, process in found.items() if process.isdecimal() and not is_another(int(process)))


def is_another(process: int) -> bool:
    """Whether it runs and is not this one. In a container every command may have the same number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return process != os.getpid()


def _is_same(read: str | Path, written: Path | int) -> bool:
    """Whether both are one regular file: by another path, a link, a hard link, or in another case."""
    try:
        one, other = os.stat(0 if read == "-" else read), os.stat(written)
    except (OSError, ValueError):  # not there, a loop of links, a closed stream, a NUL in a URL
        return False
    return stat.S_ISREG(one.st_mode) and os.path.samestat(one, other)
