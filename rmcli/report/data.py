"""What pages show of prepared data: the audit's lengths and splits, as rows and as plots. Its figures come in."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmcli.report.plots.distributions import overlaid
from rmcli.report.plots.svg import Plot

LENGTH_COLUMNS = ["tokens", "split", "number", "mean", "10 %", "half", "90 %", "99 %", "longest"]
SPLIT_COLUMNS = ["split", "groups", "packs", "pack fill", "prompt share", "sharing ratio", "truncated"]


def length_rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    """In tokens, below LENGTH_COLUMNS."""
    return [
        [name, split, one["number"], round(one["mean"], 1), *(one[p] for p in ("p10", "p50", "p90", "p99", "max"))]
        for name in ("conversation", "prompt", "response")
        for split, values in figures["splits"].items()
        if (one := values["lengths"][name])["number"]
    ]


def split_rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    """Below SPLIT_COLUMNS."""
    return [
        [
            name,
            one["groups"],
            one["packs"],
            f"{one['pack_fill']:.1%}",
            f"{one['prompt_share']:.1%}",
            f"{one['sharing_ratio']:.2f}",
            one["truncated"],
        ]
        for name, one in figures["splits"].items()
    ]


def data_plots(figures: Mapping[str, Any]) -> list[Plot]:
    """Lengths and pack fill of both splits."""
    lengths = [_lengths_plot(figures["splits"], name) for name in ("conversation", "prompt", "response")]
    return [*lengths, _fill_plot(figures["splits"])]


def _lengths_plot(splits: Mapping[str, Any], name: str) -> Plot:
    found: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for split, values in splits.items():
        lengths = values["lengths"][name]
        if lengths["number"]:
            counts, width = lengths["histogram"]["counts"], lengths["histogram"]["bin_tokens"]
            shares = [count / lengths["number"] for count in counts]
            found[split] = shares, [width * index for index in range(len(counts) + 1)]
    caption = f"How many tokens a {name} has, by split."
    return overlaid(found, f"{name} length", f"{name} length", "tokens", "share", caption)


def _fill_plot(splits: Mapping[str, Any]) -> Plot:
    found: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for split, values in splits.items():
        counts = values["pack_fill_histogram"]
        found[split] = counts, [index / len(counts) for index in range(len(counts) + 1)]
    caption = "How full the packs are."
    return overlaid(found, "pack fill", "pack fill", "share of max_packed_length", "packs", caption)
