"""The figures on a terminal: a line per set, margins as bars, what to look at by what tells pairs apart.

Colours say what the words say too: green is better than a coin for sure, red worse, yellow neither.
"""

import math
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
        other = "" if suite["against"] is None else f" (the other model: {_number(suite['against']['headline'])})"
        title = f"{suite['suite']}: {_number(suite['headline'])}{other}"
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
            ["edit", "answers", "change of score", "95 %", "rises", "unchanged", "cut or unscored"],
            [_bias_row(bias) for bias in one["format_bias"]],
            to_answer=True,
            title=f"{one['name']}: the same answers, changed in form",
        )
    if one["against"] is not None:
        output.prose(_against(one["against"]))


def _value(value: Any) -> Any:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "-" if value is None else value


def _show_margins(one: Mapping[str, Any]) -> None:
    """Bars of the pairs by margin, those that are wrong in red."""
    histogram, tied = one["figures"]["margins"]["histogram"], one["figures"]["tied_scores"]
    rows = with_ties_apart(coarser(histogram["edges"], histogram["counts"]), tied)
    most = max(count for _, _, count in rows)
    digits = max(2, 1 - math.floor(math.log10(max(high - low for low, high, _ in rows))))
    block = "\u2588" if _can_print("\u2588") else "#"
    cells = []
    for low, high, count in rows:
        bar = block * round(WIDTH * count / most)
        colour = "yellow" if low == high or low < 0 < high else "red" if high <= 0 else "green"
        span = "0, tied" if low == high else f"{low:.{digits}f} to {high:.{digits}f}"
        cells.append([span, count, Styled(bar, colour)])
    output.table(["margin", "pairs", ""], cells, to_answer=True, title=f"{one['name']}: margins, right above 0")


def coarser(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[float, float, int]]:
    """(low, high, pairs) of about ROWS bins, each of as many finer ones; 0 stays between two of them."""
    step = -(-len(counts) // ROWS)
    zero = min(range(len(edges)), key=lambda place: abs(edges[place]))
    starts = [0, *range(zero % step or step, len(counts), step)]
    return [(edges[start], edges[end], sum(counts[start:end])) for start, end in pairwise([*starts, len(counts)])]


def with_ties_apart(rows: Sequence[tuple[float, float, int]], tied: int) -> list[tuple[float, float, int]]:
    """Pairs of one score, which lie in the bin that begins at 0, in a row of their own."""
    if not tied:
        return list(rows)
    found = []
    for low, high, count in rows:
        holds = low <= 0 < high
        found += [(0.0, 0.0, tied), (low, high, count - tied)] if holds else [(low, high, count)]
    return found


def _can_print(character: str) -> bool:
    try:
        character.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _bias_row(bias: Mapping[str, Any]) -> list[Any]:
    rises = "-" if bias["rises"] is None else f"{bias['rises']:.1%}"
    told = [bias["edit"], bias["answers"], _change(bias), interval_text(bias["interval"]), rises]
    return [*told, bias["unchanged"], bias["cut_or_unscored"]]


def _change(bias: Mapping[str, Any]) -> str:
    """Coloured where the score moves for sure: form alone should move it little."""
    if bias["mean_change"] is None:
        return "-"
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
