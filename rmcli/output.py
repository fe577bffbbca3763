"""The only file that writes to a stream: answers to stdout, talk to stderr."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

_verbosity = 0  # -1 quiet, 0 normal, 1 verbose


def set_verbosity(verbosity: int) -> None:
    global _verbosity
    _verbosity = verbosity


def answer(text: str) -> None:
    """What the command was asked for."""
    print(text, flush=True)


def answer_json(value: Any, to_stderr: bool = False) -> None:
    """The answer as one line of JSON; on stderr where stdout already carries the results."""
    print(json.dumps(value, ensure_ascii=False), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def answer_stream() -> TextIO:
    """stdout, for a command whose answer is a stream of lines."""
    return sys.stdout


def say(text: str = "") -> None:
    """What a person wants to know meanwhile; silent with --quiet."""
    if _verbosity >= 0:
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Only with --verbose."""
    if _verbosity >= 1:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A changed mode, a fallback, a loss: said even with --quiet."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def error(message: str, hint: str | None) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr, flush=True)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, to_answer: bool, title: str | None = None
) -> None:
    """A table, on stdout as an answer or on stderr as talk."""
    if not to_answer and _verbosity < 0:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stdout if to_answer else sys.stderr
    # Off a terminal nothing is folded: a log or a pipe gets whole cells.
    console = Console(file=stream, width=None if stream.isatty() else 200, soft_wrap=False, highlight=False)
    grid = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    with console.capture() as capture:
        console.print(grid)
    print("\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines()), file=stream, flush=True)


class Progress:
    """One aligned line per interval; on a terminal also a bar below them."""

    def __init__(self, bar: Any | None, task: Any | None) -> None:
        self._bar, self._task = bar, task
        self._header_printed = False

    def advance(self, amount: int = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, amount)

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
            print(text, file=sys.stderr, flush=True)


def draws_bar() -> bool:
    """Whether `progress` draws a bar: only on a terminal and never with --quiet."""
    return _verbosity >= 0 and sys.stderr.isatty()


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
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Progress(bar, bar.add_task(description, total=total))
