"""Shares side by side: bars, with the interval of each where there is one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmcli.report.plots.svg import INK, LINE, SERIES, Plot, plain, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST = 28  # characters of a name beside its bar


def bars(
    names: Sequence[str],
    shares: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    key: str,
    title: str,
    xlabel: str,
    caption: str,
) -> Plot:
    """From the top down in the order given, with a line at 1/2."""

    def draw(axes: "Axes") -> None:
        places = range(len(names))
        axes.barh(places, shares, color=SERIES[0], alpha=0.75, height=0.65)
        for place, share, ends in zip(places, shares, intervals, strict=True):
            if ends is not None:
                low, high = max(share - ends[0], 0), max(ends[1] - share, 0)
                axes.errorbar([share], [place], xerr=[[low], [high]], color=INK, capsize=3, linewidth=1.4)
        axes.axvline(0.5, color=LINE, linewidth=1, linestyle="--")
        axes.set_yticks(places, [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set(title=title, xlabel=xlabel, xlim=(0, 1))

    return plot(draw, key, f"bars: {title}", caption, (4.6, max(3.0, 1.0 + 0.28 * len(names))))


def _short(name: str) -> str:
    name = plain(" ".join(name.split()))
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."
