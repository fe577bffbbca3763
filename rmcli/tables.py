"""Tables as text, for a terminal or a log: columns folded or left out by width, numbers to the right, few colours."""

import io
from collections.abc import Sequence
from typing import Any, TextIO

CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 10}
CONTROLS |= {127: "\u2421"} | {code: f"\\x{code:02x}" for code in range(128, 160)}


class Styled(str):
    """A cell in a colour, as rich names it; without one where the stream has none, or NO_COLOR is set."""

    style: str

    def __new__(cls, text: str, style: str) -> "Styled":
        made = super().__new__(cls, text)
        made.style = style
        return made


class _Paper(io.StringIO):
    """What rich draws on before it goes to a stream, as far as rich asks like that stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()


def draw(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    stream: TextIO,
    width: int,
    title: str | None = None,
    keep: Sequence[str] | None = None,
    wide: bool = False,
) -> tuple[str, list[str]]:
    """The table as lines for the stream, and the columns left out because it is narrower than they need."""
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[f"{cell:,}" if isinstance(cell, int) else visible(str(cell)) for cell in row] for row in rows]
    widths = [max(cell_len(text) for text in column) for column in zip(columns, *cells, strict=True)]
    needed = sum(widths) + 3 * len(widths)
    shown = range(len(columns))
    if keep is not None and not wide and needed > width:
        shown = [index for index, column in enumerate(columns) if column in keep]
    paper = _Paper(stream)
    console = Console(file=paper, width=max(width, needed if wide else 0), soft_wrap=False, highlight=False)
    heading = None if title is None else Text(visible(title), "table.title")
    grid = Table(box=SIMPLE_HEAD, title=heading, title_justify="left", pad_edge=False)
    for index in shown:
        numeric = all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(
            Text(visible(columns[index]), "table.header"), justify="right" if numeric else "left", overflow="fold"
        )
    for row, texts in zip(rows, cells, strict=True):
        grid.add_row(*(Text(texts[index], _style_of(row[index])) for index in shown))
    console.print(grid)
    drawn = "\n".join(line.rstrip() for line in paper.getvalue().strip("\n").splitlines()) + "\n"
    return drawn, [column for at, column in enumerate(columns) if at not in shown]


def visible(text: str) -> str:
    """Control characters as their pictures: a terminal would obey them."""
    return text.translate(CONTROLS)


def _style_of(cell: Any) -> str:
    return cell.style if isinstance(cell, Styled) else ""
