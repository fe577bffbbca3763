"""A set of an evaluation, and suites, as what a page shows. metrics.json in, with whatever an older one lacks."""

from collections.abc import Mapping
from math import log
from typing import Any

from rmcli.report.plots.distributions import histogram
from rmcli.report.plots.reliability import reliability
from rmcli.report.plots.shares import bars
from rmcli.report.plots.svg import Plot
from rmcli.report.values import (
    count,
    decimal,
    ends,
    flat,
    interval,
    mapping,
    mappings,
    number,
    per_cent,
    sequence,
    signed,
    text,
)

FOLDED = 500  # characters from which on a text is folded
_BEGINNING = 120
_LENGTH = "length_difference"


def set_view(one: Mapping[str, Any], key: str, against: str = "another model") -> dict[str, Any]:
    """What the template shows of a set. `key` is the set's own in its page; `against` names the other model."""
    figures = mapping(one.get("figures"))
    return {
        "name": text(one.get("name")),
        "accuracy": decimal(figures.get("accuracy")),
        "about": "scores were not finite: no figures" if one.get("figures") == {} else _about(figures),
        "against": _against(mapping(one.get("against")), against),
        "facts": _facts(one, figures),
        "plots": _plots(one, figures, key),
        "by": _by(mapping(one.get("by"))),
        "format_bias": [
            [
                text(edit.get("edit")),
                count(edit.get("answers")),
                signed(edit.get("mean_change")),
                interval(edit.get("interval")),
                per_cent(edit.get("rises")),
                count(edit.get("unchanged")),
                count(edit.get("cut_or_unscored")),
            ]
            for edit in mappings(one.get("format_bias"))
        ],
        "worst": [_pair(pair) for pair in mappings(one.get("worst"))],
    }


def overview_row(one: Mapping[str, Any]) -> list[Any]:
    """A set in one line: name, pairs, accuracy, its interval, mean margin, log-loss, ECE."""
    figures = mapping(one.get("figures"))
    calibration = mapping(figures.get("calibration"))
    return [
        text(one.get("name")),
        count(figures.get("pairs")),
        decimal(figures.get("accuracy")),
        interval(figures.get("interval")),
        decimal(figures.get("mean_margin")),
        decimal(calibration.get("log_loss")),
        decimal(calibration.get("ece")),
    ]


def suite_view(one: Mapping[str, Any]) -> dict[str, Any]:
    """Name, headline, table and whatever figures a suite has of its own."""
    table = mapping(one.get("table"))
    columns = [text(column) for column in sequence(table.get("columns"))]
    rows = [[_cell(cell) for cell in row] for row in sequence(table.get("rows")) if isinstance(row, list)]
    figures, against = mapping(one.get("figures")), mapping(one.get("against"))
    other = decimal(against.get("headline")) if against else ""
    return {
        "name": text(one.get("suite")),
        "headline": decimal(one.get("headline")) + (f" (the other model: {other})" if other else ""),
        "note": text(figures["not_official"]) if figures.get("not_official") else "",
        "columns": columns,
        "rows": [row for row in rows if len(row) == len(columns)],
        "figures": [[key, _cell(value)] for key, value in flat(figures).items()],
    }


def _cell(value: Any) -> Any:
    """Whole numbers as they are, others with four digits, anything else as text."""
    if isinstance(value, bool) or number(value) is None:
        return text(value)
    return value if isinstance(value, int) else f"{value:.4g}"


def _about(figures: Mapping[str, Any]) -> str:
    if not number(figures.get("pairs")):
        return "no pair was judged"
    prompts = f" of {count(figures['groups']):,} rows" if number(figures.get("groups")) else ""
    return f"accuracy; 95 %: {interval(figures.get('interval'))}; {count(figures['pairs']):,} pairs{prompts}"


def _against(found: Mapping[str, Any], name: str) -> list[str]:
    difference = mapping(found.get("difference"))
    if not number(found.get("pairs")) or number(difference.get("difference")) is None:
        return []
    said = (
        f"Against {name} on the same {count(found['pairs']):,} pairs: it has {decimal(found.get('accuracy'))}, "
        f"this one {signed(difference['difference'])} (95 %: {interval(difference.get('interval'))}, by paired "
        f"bootstrap over prompts), ahead in {per_cent(difference.get('favours_ours'))} of the resamples; "
    )
    said += verdict(difference, "this model", name)
    if left_out := number(found.get("not_compared")):
        said += f" {count(left_out):,} comparisons that one of them has no score of are left out."
    return [said]


def verdict(difference: Mapping[str, Any], ours: str, theirs: str) -> str:
    """What a paired difference, ours less theirs, allows to say."""
    span = ends(difference.get("interval"))
    if span is None:
        return "no interval was written down."
    if span[0] <= 0 <= span[1]:
        return "the interval holds 0: these pairs do not tell the two apart."
    return f"the interval does not hold 0: {ours if span[0] > 0 else theirs} is better on these pairs."


def _facts(one: Mapping[str, Any], figures: Mapping[str, Any]) -> list[list[Any]]:
    calibration, length, scores = (mapping(figures.get(name)) for name in ("calibration", "length", "scores"))
    bound = decimal(scores.get("bound"), 0)
    rows = [
        ["mean margin", decimal(figures.get("mean_margin")), ""],
        ["pairs with one score for both", count(figures.get("tied_scores")), "each counts as half right"],
        ["comparisons that call neither better", count(figures.get("tied_labels")), "they count nowhere"],
        ["log-loss", decimal(calibration.get("log_loss")), f"a coin: {log(2):.3f}"],
        ["Brier score", decimal(calibration.get("brier")), "a coin: 0.250"],
        ["expected calibration error", decimal(calibration.get("ece")), "as sure as right: 0"],
        ["temperature that fits best", decimal(calibration.get("temperature")), "1: margins are as they should be"],
        ["log-loss at that temperature", decimal(calibration.get("log_loss_at_temperature")), ""],
        ["who always takes the longer answer", decimal(length.get("longer_wins")), "a ruler's accuracy"],
        *(
            [f"accuracy {words}", decimal(some.get("accuracy")), _of_pairs(some)]
            for name, words in {
                "equal_length": "at equal length (within 10 %)",
                "better_is_longer": "where the better answer is longer",
                "better_is_shorter": "where it is shorter",
            }.items()
            if (some := mapping(length.get(name)))
        ),
        ["rank correlation of score and length", decimal(length.get("spearman")), "none: 0"],
        ["scores", f"{decimal(scores.get('min'), 2)} to {decimal(scores.get('max'), 2)}", ""],
        [f"answers beyond ±{bound}", per_cent(scores.get("beyond_bound")), "the log barrier's bound by default"],
    ]
    rows = [row for row in rows if row[1] not in ("-", "- to -")]
    rows += [["lines", count(one.get("lines")), ""]] if number(one.get("lines")) is not None else []
    rows += [["truncated", count(one.get("truncated")), ""]] if number(one.get("truncated")) else []
    for title in ("errors", "noted"):
        rows += [[f"{title}: {name}", count(many), ""] for name, many in mapping(one.get(title)).items()]
    return rows


def _of_pairs(some: Mapping[str, Any]) -> str:
    span = "" if ends(some.get("interval")) is None else f"95 %: {interval(some.get('interval'))}; "
    return f"{span}{text(some.get('pairs'))} pairs"


def _plots(one: Mapping[str, Any], figures: Mapping[str, Any], key: str) -> list[Plot]:
    scores = mapping(figures.get("scores"))
    bound = number(scores.get("bound")) or 5.0
    found = [
        histogram(
            mapping(figures.get("margins")),
            f"{key} margins",
            "margins",
            "score of the better answer less the worse one's",
            "Right of the line at 0 a pair is ordered right.",
            [0],
        ),
        histogram(
            scores,
            f"{key} scores",
            "scores",
            "score",
            f"All answers; the lines are at ±{decimal(bound, 0)}, where the log barrier stands by default.",
            [-bound, bound],
        ),
        reliability(mapping(figures.get("calibration")), f"{key} reliability"),
        _by_length(mapping(one.get("by")), mapping(figures.get("length")), f"{key} length"),
    ]
    return [plot for plot in found if plot is not None]


def _by_length(by: Mapping[str, Any], length: Mapping[str, Any], key: str) -> Plot | None:
    """By the difference of lengths; of what says only which answer is longer, by that."""
    words = {"better_is_shorter": "shorter", "equal_length": "within 10 %", "better_is_longer": "longer"}
    some = mappings(by.get(_LENGTH)) or [
        {**mapping(length.get(name)), "value": value} for name, value in words.items()
    ]
    some = [one for one in some if number(one.get("accuracy")) is not None]
    if not some:
        return None
    return bars(
        [f"{text(one.get('value'))} ({text(one.get('pairs'))})" for one in some],
        [one["accuracy"] for one in some],
        [ends(one.get("interval")) for one in some],
        key,
        "accuracy by difference of length",
        "accuracy",
        "How much longer the better answer is, in tokens (and how many pairs); with 95 % intervals.",
    )


def _by(by: Mapping[str, Any]) -> list[tuple[str, list[list[Any]]]]:
    columns = ("accuracy", "interval", "mean_margin")
    show = {"accuracy": decimal, "interval": interval, "mean_margin": decimal}
    return [
        (
            name.replace("_", " ") if name in (_LENGTH, "source", "turns") else name,
            [
                [
                    text(one.get("value")),
                    count(one.get("pairs")),
                    *(show[column](one.get(column)) for column in columns),
                ]
                for one in mappings(rows)
            ],
        )
        for name, rows in by.items()
        if mappings(rows)
    ]


def _pair(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scores": f"margin {decimal(pair.get('margin'), 2)}",
        "where": text(pair.get("where")),
        "chosen_score": decimal(pair.get("chosen_score"), 2),
        "rejected_score": decimal(pair.get("rejected_score"), 2),
        **{name: _words(text(pair.get(name))) for name in ("prompt", "chosen", "rejected")},
    }


def _words(given: str) -> dict[str, Any]:
    """A text, whole; from some length on it is folded behind its beginning."""
    beginning = " ".join(given[: 4 * _BEGINNING].split())[:_BEGINNING] + " ..."
    is_long = len(given) > FOLDED or given.count("\n") > 20
    return {"text": given, "is_long": is_long, "beginning": beginning, "length": len(given)}
