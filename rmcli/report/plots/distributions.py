"""How values lie: histograms, one or several over each other."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rmcli.report.plots.svg import LINE, SERIES, Plot, plot
from rmcli.report.values import mapping, number, sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histogram(
    found: Mapping[str, Any], key: str, title: str, xlabel: str, caption: str, marks: Sequence[float] = ()
) -> Plot | None:
    """Of what `rmcli.metrics.figures.spread` gives, with a line at each of the `marks`; None of nothing."""
    stored = mapping(found.get("histogram"))
    edges = [number(one) for one in sequence(stored.get("edges"))]
    counts = [number(one) for one in sequence(stored.get("counts"))]
    if not counts or len(edges) != len(counts) + 1 or None in edges or None in counts:
        return None

    def draw(axes: "Axes") -> None:
        axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.75)  # type: ignore[arg-type]
        for mark in marks:
            axes.axvline(mark, color=LINE, linewidth=1.2, linestyle="--")
        axes.set(title=title, xlabel=xlabel, ylabel="count")

    return plot(draw, key, f"histogram: {title}", caption)


def overlaid(
    values: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    key: str,
    title: str,
    xlabel: str,
    ylabel: str,
    caption: str,
) -> Plot:
    """Histograms by name, each (counts, edges): the first one filled, the others as lines."""

    def draw(axes: "Axes") -> None:
        for place, (name, (counts, edges)) in enumerate(values.items()):
            axes.stairs(counts, edges, fill=not place, alpha=1 if place else 0.6, color=SERIES[place], label=name)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if values:
            axes.legend()

    return plot(draw, key, f"histogram: {title}", caption)
