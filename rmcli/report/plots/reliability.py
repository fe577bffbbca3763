"""The reliability curve: how often pairs of one confidence are right."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rmcli.report.plots.svg import LINE, SERIES, Plot, plot
from rmcli.report.values import decimal, mappings, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reliability(calibration: Mapping[str, Any], key: str) -> Plot | None:
    """Of what `rmcli.metrics.calibration` gives, a point's area by its pairs; None without a curve."""
    bins = [
        (confidence, accuracy, pairs)
        for one in mappings(calibration.get("curve"))
        if (confidence := number(one.get("confidence"))) is not None
        and (accuracy := number(one.get("accuracy"))) is not None
        and (pairs := number(one.get("pairs")))
    ]
    if not bins:
        return None

    def draw(axes: "Axes") -> None:
        most = max(pairs for *_, pairs in bins)
        confidences, accuracies = [one[0] for one in bins], [one[1] for one in bins]
        axes.plot([0.5, 1], [0.5, 1], color=LINE, linestyle="--", linewidth=1, label="as sure as right")
        axes.plot(confidences, accuracies, color=SERIES[0], linewidth=1.5, label="measured")
        axes.scatter(confidences, accuracies, [12 + 90 * pairs / most for *_, pairs in bins], color=SERIES[0])
        axes.set(title="reliability", xlabel="confidence: sigmoid(|margin|)", ylabel="accuracy", xlim=(0.48, 1.02))
        axes.set_ylim(min(0.45, *accuracies, 1) - 0.03, 1.04)
        axes.legend(loc="lower right")

    names = {"ece": "ECE", "brier": "Brier", "log_loss": "log-loss", "temperature": "fitted temperature"}
    said = ", ".join(f"{name} {decimal(calibration.get(which))}" for which, name in names.items())
    caption = f"{said}. Above the broken line margins are too small, below it too large; a point's area is its pairs."
    return plot(draw, key, "reliability curve", caption)
