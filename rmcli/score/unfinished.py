"""Scores on their way: OUT.part grows by whole windows, OUT.part.settings says how far and for which command.

Killed at any moment, the same command goes on behind the last whole window. Lines that came after it are cut off, so
that none is there twice; the windows are those of a run without the stop, and so is every byte.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rmcli import output
from rmcli.errors import ConfigError, RmcliError
from rmcli.output_files import OutputFile

PART, TOLD = ".part", ".part.settings"  # no ending of data: in a folder that is read they are no rows
FORMAT = 1


@dataclass
class Done:
    """How far it is: rows of the input, bytes of OUT.part, a hash of those rows, and the summary's state."""

    rows: int = 0
    size: int = 0
    digest: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)


class Unfinished:
    """OUT.part while a command writes it. `done` is what is safe: first what an earlier command left."""

    def __init__(self, target: OutputFile, settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.target = target
        self.part, self.told = part_of(target), target.target.with_name(target.target.name + TOLD)
        self._about = {"format": FORMAT, "settings": json.loads(json.dumps(settings)), "machine": dict(machine)}
        self.done, self._digest = Done(), hashlib.blake2b(digest_size=16)
        with target.explained():
            self.part.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.part.exists()
            if is_new:
                self._tell()  # before the part: one without a word about it is nobody's
            self._file = self._opened()
        try:
            if not is_new:
                self.done = self._found()
            self._file.truncate(self.done.size)
        except BaseException:
            self._file.close()
            raise
        self._size, self._rows = self.done.size, self.done.rows

    def take_as_read(self, digests: Iterator[bytes]) -> None:
        """The rows that are done already, as the input has them now. Raises ConfigError where they are others."""
        if not self.done.rows:
            return
        for digest in digests:
            self._digest.update(digest)
        if self._digest.hexdigest() != self.done.digest:
            raise ConfigError(
                f"{self.part} holds the scores of {self.done.rows:,} rows, and the input does not begin with them",
                f"give the input that it was begun with, or remove {self.part} to begin anew",
            )

    def write(self, text: str) -> None:
        data = text.encode("utf-8", errors="json_escapes")
        self._size += len(data)
        with self.target.explained():
            self._file.write(data)

    def count(self, digest: bytes) -> None:
        """A row of the input whose lines are written."""
        self._rows += 1
        self._digest.update(digest)

    def commit(self, summary: Mapping[str, Any]) -> None:
        """What is written up to here is kept, whatever happens."""
        with self.target.explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            self.done = Done(self._rows, self._size, self._digest.hexdigest(), summary)
            self._tell()

    def finish(self) -> None:
        """OUT.part takes its place as OUT."""
        self.target.check()  # once more: something may stand there now
        with self.target.explained():
            self.part.replace(self.target.target)
            self.told.unlink()

    def close(self) -> None:
        """Without a whole window nothing is left."""
        with suppress(OSError):  # of what is lost anyway, and was told of
            self._file.close()
        if not self.done.rows:
            self.part.unlink(missing_ok=True)
            self.told.unlink(missing_ok=True)

    def _found(self) -> Done:
        """What an earlier command of the same settings has done; nothing where it got nowhere."""
        begin_anew = f"give the same command to go on, or remove {self.part} to begin anew"
        try:
            told = json.loads(self.told.read_text(encoding="utf-8"))
            done, before = Done(**told["done"]), told["settings"]
        except FileNotFoundError:
            raise ConfigError(
                f"{self.part} is there without {self.told}: nothing tells what it is", begin_anew
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RmcliError(f"{self.told} cannot be read: {error}", begin_anew) from error
        if not done.rows:
            return Done()
        for key in {**before, **self._about["settings"]}:
            then, now = before.get(key), self._about["settings"].get(key)
            if then != now:
                raise ConfigError(f"{self.part} was begun with {key} = {then!r}, not {now!r}", begin_anew)
        if told.get("format") != FORMAT or self.part.stat().st_size < done.size:
            raise RmcliError(f"{self.part} is shorter than {self.told} says: it is damaged", begin_anew)
        self._say(done, told.get("machine", {}))
        return done

    def _say(self, done: Done, machine: Mapping[str, Any]) -> None:
        output.say(f"going on with {self.part}: {done.rows:,} rows are done")
        now = self._about["machine"]
        changed = [f"{key} {now[key]} (was {machine.get(key)})" for key in now if now[key] != machine.get(key)]
        if changed:
            output.warn(f"{', '.join(changed)}: the scores go on, not bitwise as without the stop")

    def _opened(self) -> IO[bytes]:
        """OUT.part, held by this process alone. Raises RmcliError where another one has it."""
        file = self.part.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.part)):
                raise BlockingIOError  # its holder has just finished it
        except (BlockingIOError, FileNotFoundError):
            file.close()
            raise RmcliError(f"{self.part} is being written by another command", "wait for it, or end it") from None
        except OSError as error:  # some network file systems have no locks
            output.warn(
                f"{self.part} cannot be locked ({error.strerror}): two commands in one file would not be seen"
            )
        return file

    def _tell(self) -> None:
        """OUT.part.settings is always whole: the old one or the new one."""
        new = self.told.with_name(f"{self.told.name}.new")
        try:
            new.write_text(json.dumps({**self._about, "done": vars(self.done)}), encoding="utf-8")
            new.replace(self.told)
        finally:
            new.unlink(missing_ok=True)


def part_of(target: OutputFile) -> Path:
    """Where what is unfinished of a file lies."""
    return target.target.with_name(target.target.name + PART)


@contextmanager
def opened(target: OutputFile, settings: Mapping[str, Any], machine: Mapping[str, Any]) -> Iterator[Unfinished]:
    """OUT.part to write behind what is done. It becomes OUT when the context ends well; else whole windows stay.

    Raises ConfigError where it was begun by a command of other settings, RmcliError where another one writes it.
    """
    target.check()
    for path in (part_of(target), target.target.with_name(target.target.name + TOLD)):
        target.check_not_read(path)
    file = Unfinished(target, settings, machine)
    try:
        yield file
        file.finish()
    finally:
        file.close()
