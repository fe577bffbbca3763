"""The audit as one HTML file: what its page shows beside what all pages have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmcli.audit import screen
from rmcli.output_files import OutputFile
from rmcli.report.data import LENGTH_COLUMNS, SPLIT_COLUMNS, data_plots, length_rows, split_rows
from rmcli.report.page import check_plots, page_file
from rmcli.report.page import write_page as write
from rmcli.report.plots.shares import bars
from rmcli.report.plots.svg import Plot

EXCERPT_CHARACTERS = 160
_TITLE = "Audit of "


def report_file(path: Path | None, overwrite: bool, inputs: Sequence[str | Path]) -> OutputFile | None:
    """Where the report goes. Raises ConfigError, before any work, where it must not; None where there is none."""
    if path is None:
        return None
    check_plots("--report")
    file = page_file(path, "audit report", _TITLE, overwrite, inputs, is_signed=False)
    file.check()
    return file


def write_page(figures: Mapping[str, Any], target: OutputFile) -> None:
    """Write the report. The same figures give the same bytes. Raises RmcliError when it cannot be written."""
    check_plots("--report")
    width = EXCERPT_CHARACTERS
    values = {
        "title": f"{_TITLE}{figures['folder']}",
        "figures": figures,
        "plots": _plots(figures),
        "length_columns": LENGTH_COLUMNS,
        "lengths": length_rows(figures),
        "split_columns": SPLIT_COLUMNS,
        "splits": split_rows(figures),
        "sources": screen.source_rows(figures),
        "summary": screen.summary_lines(figures),
        "ending_columns": screen.ENDING_COLUMNS,
        "endings": screen.ending_rows(figures),
        "near_columns": screen.NEAR_COLUMNS,
        "near": screen.near_rows(figures, width),
        "extreme_columns": screen.EXTREME_COLUMNS,
        "extremes": [
            (title, screen.extreme_rows(figures["extremes"][name], width))
            for name, title in screen.EXTREME_TITLES.items()
        ],
    }
    write(target, "page.html", values, Path(__file__).parent)


def _plots(figures: Mapping[str, Any]) -> list[Plot]:
    found = data_plots(figures)
    decided = [one for one in figures["sources"] if one["longer_wins_share"] is not None]
    if decided:
        names = [f"{number}: {Path(one['source']).name}" for number, one in enumerate(decided)]
        shares = [one["longer_wins_share"] for one in decided]
        caption = "Of the comparisons with a winner and different lengths, the share that the longer answer wins."
        title = "the longer answer wins"
        found.append(
            bars(names, shares, [None] * len(names), "sources", title, "share of decided comparisons", caption)
        )
    return found
