"""Figures by step: lines of one run, or of several over each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rmcli.report.plots.svg import Plot, plain, plot, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]  # step, value


@dataclass(frozen=True)
class Curve:
    """By step; `is_marked`: few points, each of which is one measurement. `series` chooses its colour."""

    points: Points
    series: int
    is_marked: bool = False


def curves(
    found: Mapping[str, Curve], key: str, title: str, caption: str, band: tuple[Points, Points] | None = None
) -> Plot | None:
    """All that have a point, by name; `band` is filled from its lower to its upper points. None without any."""
    shown = {name: one for name, one in found.items() if one.points}
    if not shown:
        return None

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        if band is not None:
            (steps, low), (_, high) = zip(*band[0], strict=True), zip(*band[1], strict=True)
            axes.fill_between(steps, low, high, color=style(0)["color"], alpha=0.25, linewidth=0)
        for name, one in shown.items():
            steps, values = zip(*one.points, strict=True)
            marker = "o" if one.is_marked or len(steps) == 1 else None
            axes.plot(
                steps, values, label=plain(name), linewidth=1.4, marker=marker, markersize=4, **style(one.series)
            )
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(shown) > 1:
            axes.legend()

    return plot(draw, key, f"curve by step: {title}", caption)
