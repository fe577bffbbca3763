"""A plot as SVG inside a page, by matplotlib. Its colours are the page's, so it is as readable in the dark."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05", "#0a0a06")
_INK, _LINE = "#0a0a0a", "#0a0a0b"
# What stands for a colour while matplotlib draws, and the page's colour that takes its place.
_COLOURS = {one: f"var(--series-{number})" for number, one in enumerate(SERIES, 1)}
_COLOURS |= {_INK: "var(--text)", _LINE: "var(--line)"}
LINE, INK = _LINE, _INK
_STYLES = ("-", "--", ":", "-.")
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "text.parse_math": False,  # a $ is a dollar
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": "small",
}


@dataclass(frozen=True)
class Plot:
    """`svg` to print as it is, and what stands below it."""

    svg: "Markup"
    caption: str


def plot(
    draw: "Callable[[Axes], None]", key: str, label: str, caption: str, size: tuple[float, float] = (4.6, 3.0)
) -> Plot:
    """What `draw` draws, in inches. `key` is the plot's own in its page; `label` is for those who cannot see it.

    The same drawing gives the same bytes.
    """
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": key}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return Plot(Markup(_for_a_page(stream.getvalue(), label)), caption)


def style(number: int) -> dict[str, Any]:
    """Colour and stroke of a plot's N-th series, counted from 0: of two that lie on each other both can be seen."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": _STYLES[number % len(_STYLES)]}


def plain(name: str) -> str:
    """matplotlib's font lacks most letters, and says so of each."""
    return name.encode("ascii", errors="replace").decode("ascii")


def _for_a_page(text: str, label: str) -> str:
    """Without what only a file of its own needs; numbered names would be there once for each plot."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # matplotlib before 3.10
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub("|".join(_COLOURS), lambda found: _COLOURS[found[0]], text)
    return text.replace("<svg", f'<svg class="plot" role="img" aria-label="{escape(label)}"', 1)
