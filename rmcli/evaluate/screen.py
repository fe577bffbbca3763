"""The figures on a terminal: a line per set, margins as bars, what to look at by what tells pairs apart.

Colours say what the words say too: green is better than a coin for sure, red worse, yellow neither.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rmcli import output
from rmcli.tables import Styled

WIDTH = 40  # characters of the longest bar
ROWS = 12  # of the histogram


def show(found: Mapping[str, Any]) -> None:
    """As the answer of `rmcli evaluate`."""
    sets = found["sets"]
    if sets:
        output.table(
            [
                "set",
                "pairs",
                "accuracy",
                "95 %",
                "margin",
                "ECE",
                "log-loss",
                "temperature",
                "longer wins",
                "spearman",
            ],
            [_row(one) for one in sets],
            to_answer=True,
            title="accuracy",
            keep=["set", "pairs", "accuracy", "95 %", "margin", "ECE"],
        )
    for one in sets:
        _show_set(one)
    for suite in found["suites"]:
        table = suite["table"]
        title = f"{suite['suite']}: {_number(suite['headline'])}"
        output.table(table["columns"], table["rows"], to_answer=True, title=title)


def _row(one: Mapping[str, Any]) -> list[Any]:
    figures = one["figures"]
    calibration, length = figures["calibration"], figures["length"]
    return [
        one["name"],
        figures["pairs"],
        accuracy_cell(figures),
        interval_text(figures["interval"]),
        _number(figures["mean_margin"]),
        _number(calibration["ece"]),
        _number(calibration["log_loss"]),
        _number(calibration["temperature"]),
        _number(length["longer_wins"]),
        _number(length["spearman"]),
    ]


def accuracy_cell(figures: Mapping[str, Any], coin: float = 0.5) -> str:
    """The accuracy, coloured by where its interval lies beside a coin's."""
    if figures["accuracy"] is None:
        return "-"
    low, high = figures["interval"]
    style = "green" if low > coin else "red" if high < coin else "yellow"
    return Styled(f"{figures['accuracy']:.3f}", style)


def interval_text(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _show_set(one: Mapping[str, Any]) -> None:
    output.answer("")
    _show_margins(one)
    for name, rows in one["by"].items():
        if len(rows) > 1:
            cells = [
                [
                    row["value"],
                    row["pairs"],
                    accuracy_cell(row),
                    interval_text(row["interval"]),
                    _number(row["mean_margin"]),
                ]
                for row in rows
            ]
            words = name.replace("_", " ")
            columns = [words, "pairs", "accuracy", "95 %", "margin"]
            output.table(columns, cells, to_answer=True, title=f"{one['name']} by {words}")
    if one["format_bias"]:
        output.table(
            ["edit", "answers", "change of score", "95 %", "rises"],
            [
                [
                    bias["edit"],
                    bias["answers"],
                    _change(bias),
                    interval_text(bias["interval"]),
                    f"{bias['rises']:.1%}",
                ]
                for bias in one["format_bias"]
            ],
            to_answer=True,
            title=f"{one['name']}: the same answers, changed in form",
        )
    if one["against"] is not None:
        output.prose(_against(one["against"]))


def _value(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "-" if value is None else value


def _show_margins(one: Mapping[str, Any]) -> None:
    """Bars of the pairs by margin, those that are wrong in red."""
    histogram = one["figures"]["margins"]["histogram"]
    rows = coarser(histogram["edges"], histogram["counts"])
    most = max(count for _, _, count in rows)
    block = "\u2588" if _can_print("\u2588") else "#"
    cells = []
    for low, high, count in rows:
        bar = block * round(WIDTH * count / most)
        colour = "red" if high <= 0 else "green" if low >= 0 else "yellow"
        cells.append([f"{low:.2f} to {high:.2f}", count, Styled(bar, colour)])
    output.table(["margin", "pairs", ""], cells, to_answer=True, title=f"{one['name']}: margins, right above 0")


def coarser(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float, int]]:
    """(low, high, pairs) of about ROWS bins, each of as many finer ones; 0 stays between two of them."""
    step = -(-len(counts) // ROWS)
    zero = min(range(len(edges)), key=lambda place: abs(edges[place]))
    starts = [0, *range(zero % step or step, len(counts), step)]
    return [(edges[start], edges[end], sum(counts[start:end])) for start, end in pairwise([*starts, len(counts)])]


def _can_print(character: str) -> bool:
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _change(bias: Mapping[str, Any]) -> str:
    """Coloured where the score moves for sure: form alone should move it little."""
    text, interval = f"{bias['mean_change']:+.3f}", bias["interval"]
    return text if interval is None or interval[0] <= 0 <= interval[1] else Styled(text, "yellow")


def _against(figures: Mapping[str, Any]) -> str:
    """The comparison in words: no difference is claimed that the interval does not show."""
    if not figures["pairs"]:
        return "the other model has no pair in common"
    difference = figures["difference"]
    low, high = difference["interval"]
    verdict = "better" if low > 0 else "worse" if high < 0 else "no sure difference"
    left_out = f"; {figures['not_compared']:,} not compared" * bool(figures["not_compared"])
    return (
        f"the other model: accuracy {figures['accuracy']:.3f} on {figures['pairs']:,} pairs; this less the other: "
        f"{difference['difference']:+.3f} (95 %: {low:+.3f} to {high:+.3f}): {verdict}{left_out}"
    )
