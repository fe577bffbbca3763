"""Where scores go: a file that can be gone on with, or stdout, a device or a pipe, written as they come."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rmcli import output
from rmcli.output_files import OutputFile
from rmcli.score.unfinished import Done, Unfinished, opened

Facts = Mapping[str, Any]


class Stream:
    """What is written once and for all: nobody goes on with it."""

    part = None

    def __init__(self, lines: output.Lines) -> None:
        self._lines = lines
        self.done = Done()

    def take_as_read(self, digests: Iterator[bytes]) -> None:
        """Nothing was done before."""

    def write(self, text: str) -> None:
        self._lines.write(text)

    def count(self, digest: bytes) -> None:
        self.done.rows += 1

    def commit(self, summary: Facts) -> None:
        self._lines.flush()


@contextmanager
def place(target: OutputFile | None, facts: Callable[[], tuple[Facts, Facts]]) -> Iterator[Stream | Unfinished]:
    """stdout (None), a device, or a file behind what an earlier command has written of it.

    `facts`: the settings that what goes on must share, and the machine that it had better share.
    """
    if target is None:
        yield Stream(output.answer_stream())
    elif target.is_direct:
        with target.open() as lines:
            yield Stream(lines)
    else:
        with opened(target, *facts()) as part:
            yield part
