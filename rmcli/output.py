"""The only file that writes to a stream: answers to stdout, talk to stderr."""

import codecs
import json
import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from rmcli import tables
from rmcli.errors import RmcliError
from rmcli.logs import is_library, logged

_verbosity = 0  # -1 quiet, 0 normal, 1 verbose


def set_verbosity(verbosity: int) -> None:
    global _verbosity
    _verbosity = verbosity


class Lines(Protocol):
    """What takes a command's lines: stdout or a file."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


def _as_json_escapes(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, and lone surrogates, as \\uXXXX: JSON stays JSON, text can be read."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error("json_escapes", _as_json_escapes)


def open_streams() -> None:
    """Once per process: a stream that cannot encode a character escapes it; a closed one fails when it is used.

    Without that the first file opened would take the number of a closed stream, and what is printed would go there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # Reading what is open for writing alone fails, and the other way round; talk may vanish.
            nowhere = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="json_escapes")  # type: ignore[union-attr]


def give_up(stream: TextIO) -> None:
    """What is still to be written to the stream goes nowhere: else Python would fail once more when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


_voice: int | None = None  # where stderr led before this process fell silent
_is_said = False  # what is about to be said has been said by another process


def fall_silent() -> None:
    """From now on what this process and its libraries write goes nowhere: another one talks for all."""
    global _voice
    if _voice is None:
        doing(None)
        _voice = os.dup(2)
        give_up(sys.stdout)
        give_up(sys.stderr)


def talk_again() -> None:
    """stderr leads where it did before this process fell silent."""
    global _voice
    if _voice is not None:
        os.dup2(_voice, 2)
        os.close(_voice)
        _voice = None


@contextmanager
def said_already(is_said: bool) -> Iterator[None]:
    """Inside, where `is_said`, talk goes nowhere: the process that started this one has said the same."""
    global _is_said
    before, _is_said = _is_said, is_said
    try:
        yield
    finally:
        _is_said = before


_SHOWN_AFTER, _EVERY = 0.5, 0.25  # seconds: what is quick says nothing
_CLEAR = "\r\x1b[2K"


class _Status:
    """One line below all others, drawn by a thread; every writer to the terminal clears it first."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._text: str | None = None
        self._since = 0.0
        self._drawn = False
        self._thread: threading.Thread | None = None

    def set(self, text: str | None) -> None:
        """What goes on from now; None: nothing that is shown."""
        with self.lock:
            self.clear()
            self._text, self._since = text, time.monotonic()
            if text is not None and self._thread is None:
                self._thread = threading.Thread(target=self._draw_again_and_again, daemon=True)
                self._thread.start()

    def clear(self) -> None:
        """Take the line away; it comes back while the same goes on."""
        with self.lock:
            if self._drawn:
                self._put(_CLEAR)
                self._drawn = False

    def _draw_again_and_again(self) -> None:
        while True:
            time.sleep(_EVERY)
            with self.lock:
                if self._text is None:
                    self._thread = None
                    return
                seconds = time.monotonic() - self._since
                if seconds >= _SHOWN_AFTER:
                    self._put(f"{_CLEAR}{self._text[:60]} ... {seconds:.0f} s")
                    self._drawn = True

    def _put(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal is gone
            self._text = None


_status = _Status()


class _Stdout:
    def write(self, text: str) -> None:
        _put_answer(text, flush=False)

    def flush(self) -> None:
        _put_answer("")


def _put_answer(text: str, flush: bool = True) -> None:
    """Raises RmcliError where stdout takes no more, BrokenPipeError where nobody reads it."""
    _status.clear()
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise RmcliError(f"cannot write to stdout: {error.strerror or error}") from error


def _put_talk(text: str) -> None:
    """Where stderr takes no more, the work goes on in silence."""
    if _is_said:
        return
    with _status.lock:
        _status.clear()
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            give_up(sys.stderr)


def answer(text: str) -> None:
    """What the command was asked for."""
    _put_answer(text + "\n")


def answer_json(value: Any, to_stderr: bool = False) -> None:
    """The answer as one line of JSON; on stderr where stdout already carries the results."""
    put = _put_talk if to_stderr else _put_answer
    put(json.dumps(value, ensure_ascii=False) + "\n")


def answer_stream() -> Lines:
    """stdout, for a command whose answer is a stream of lines."""
    return _Stdout()


def doing(text: str | None) -> None:
    """On a terminal, shown with the seconds it takes, from half a second on; None: nothing, or a bar shows it."""
    if text is None or draws_bar():
        _status.set(text)


def say(text: str = "") -> None:
    """What a person wants to know meanwhile; silent with --quiet."""
    if not logged(logging.INFO, text) and _verbosity >= 0:
        _put_talk(text + "\n")


def detail(text: str) -> None:
    """Only with --verbose."""
    if not logged(logging.DEBUG, text) and _verbosity >= 1:
        _put_talk(text + "\n")


def warn(text: str) -> None:
    """A changed mode, a fallback, a loss: said even with --quiet."""
    if not logged(logging.WARNING, text):
        _put_talk(f"note: {text}\n")


def error(message: str, hint: str | None) -> None:
    _put_talk(f"error: {' '.join(message.split())}\n" + (f"hint: {hint}\n" if hint else ""))


_UNKNOWN = 200


def _width(stream: TextIO) -> int:
    """Columns of the terminal, or as COLUMNS says. Off a terminal nothing is folded: a log gets whole cells."""
    if not stream.isatty() and "COLUMNS" not in os.environ:
        return _UNKNOWN
    return shutil.get_terminal_size().columns


def folded(start: str, text: str) -> str:
    """`text` after `start`, broken at words and indented below itself; on a terminal to its width, else to 100."""
    width = min(_width(sys.stdout), 100)
    return textwrap.fill(
        text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


def prose(text: str) -> None:
    """A line of the answer that is read, broken at words where the width is known."""
    width = _width(sys.stdout)
    answer(text if width == _UNKNOWN else folded("", text))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    to_answer: bool,
    title: str | None = None,
    keep: Sequence[str] | None = None,
    wide: bool = False,
) -> None:
    """A table, on stdout as an answer or on stderr as talk.

    Where it is wider than the terminal, only the columns `keep` are shown (None: all, folded), unless `wide` is set.
    A cell that is `tables.Styled` has its colour on a terminal.
    """
    if not to_answer and _verbosity < 0:
        return
    stream = sys.stdout if to_answer else sys.stderr
    drawn, hidden = tables.draw(columns, rows, stream, _width(stream), title, keep, wide)
    put = _put_answer if to_answer else _put_talk
    put(drawn)
    if hidden:
        say(f"with --wide also: {', '.join(hidden)}")


FIRST_WORD_AFTER = 5.0  # seconds of a first unit, before a log says how far it is


class Progress:
    """One aligned line per interval; on a terminal also a bar below them."""

    def __init__(self, bar: Any | None, task: Any | None) -> None:
        self._bar, self._task = bar, task
        self._header_printed = False
        self._num_parts, self._since = 0, time.monotonic()

    def advance(self, amount: float = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, amount)

    def advance_part(self, of: int) -> None:
        """One of `of` parts of a unit. A log says once how far the first unit is, where that takes long."""
        self.advance(1 / of)
        self._num_parts += 1
        seconds = time.monotonic() - self._since
        if self._bar is None and not self._header_printed and self._num_parts < of and seconds >= FIRST_WORD_AFTER:
            self.note(f"step 1: {self._num_parts:,} of {of:,} forwards in {seconds:,.0f} s")
            self._since = float("inf")

    def line(self, fields: Mapping[str, str]) -> None:
        """Values under their names; the names come once."""
        if _verbosity < 0:
            return
        widths = [max(len(name), 9) for name in fields]
        if not self._header_printed:
            self._print("  ".join(name.rjust(width) for name, width in zip(fields, widths, strict=True)))
            self._header_printed = True
        self._print("  ".join(value.rjust(width) for value, width in zip(fields.values(), widths, strict=True)))

    def note(self, text: str) -> None:
        """A line of talk between the others."""
        if _verbosity >= 0:
            self._print(text)

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            _put_talk(text + "\n")


def draws_bar() -> bool:
    """Whether `progress` draws a bar: only on a terminal and never with --quiet."""
    return _verbosity >= 0 and sys.stderr.isatty() and not is_library()


@contextmanager
def progress(description: str, total: int | None, unit: str = "") -> Iterator[Progress]:
    """Progress over `total` units, as a bar where `draws_bar`.

    With the name of a unit the bar shows how many of them pass per second.
    """
    if not draws_bar():
        yield Progress(None, None)
        return
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.text import Text

    class SpeedColumn(rich_progress.ProgressColumn):
        def render(self, task: rich_progress.Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        *([SpeedColumn()] if unit else []),
        rich_progress.TimeRemainingColumn(),
    )
    doing(None)  # a bar says it
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task(description, total=total))
