"""Figures by step: lines of one run, or of several over each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from rmcli.report.plots.svg import Plot, plain, plot, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]  # step, value
MOST = 500  # points of a line: more cannot be told apart, and make a page large


@dataclass(frozen=True)
class Curve:
    """By step; `is_marked`: few points, each of which is one measurement. `series` chooses its colour."""

    points: Points
    series: int
    is_marked: bool = False


def curves(
    found: Mapping[str, Curve], key: str, title: str, caption: str, band: tuple[Points, Points] | None = None
) -> Plot | None:
    """All that have a point, by name; `band` is filled from its lower to its upper points. None without any.

    Of a long line neighbours are drawn as their mean, which the caption says; a band keeps its extremes.
    """
    shown = {name: one for name, one in found.items() if one.points}
    if not shown:
        return None

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        if band is not None:
            (steps, low), (_, high) = zip(*joined(band[0], min), strict=True), zip(*joined(band[1], max), strict=True)
            axes.fill_between(steps, low, high, color=style(0)["color"], alpha=0.25, linewidth=0)
        for name, one in shown.items():
            steps, values = zip(*joined(one.points, fmean), strict=True)
            marker = "o" if (one.is_marked and len(steps) < MOST / 5) or len(steps) == 1 else None
            look = style(one.series)
            axes.plot(steps, values, label=plain(name), linewidth=1.4, marker=marker, markersize=4, **look)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(shown) > 1:
            axes.legend()

    most = max(_size(one.points) for one in shown.values())
    said = f" A point is the mean of {most:,} in a row." if most > 1 else ""
    return plot(draw, key, f"curve by step: {title}", caption + said)


def joined(points: Points, how: Callable[[Sequence[float]], float]) -> Points:
    """At most MOST points: as many neighbours as it takes made one, at the last one's step."""
    size = _size(points)
    if size == 1:
        return points
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], how([value for _, value in part])) for part in parts]


def _size(points: Points) -> int:
    """How many neighbours become one."""
    return max(1, -(-len(points) // MOST))
