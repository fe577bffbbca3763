"""The figures as one HTML file that needs nothing else: tables by jinja2, plots by matplotlib as SVG inside."""

import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.audit import screen
from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.output_files import OutputFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXCERPT_CHARACTERS = 160
COLOURS = {"train": "#4472a8", "eval": "#d9822b"}


def check_plots() -> None:
    """Raise ConfigError, before any work, when the plots' package is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "--report draws with matplotlib, which is not installed", f"run: {install_command('report')}"
        )


def report_file(path: Path | None, overwrite: bool, inputs: Sequence[str | Path]) -> OutputFile | None:
    """Where the report goes. Raises ConfigError, before any work, where it must not; None where there is none."""
    if path is None:
        return None
    check_plots()
    file = OutputFile(path, "audit report", _is_report, overwrite, inputs)
    file.check()
    return file


def _is_report(beginning: str) -> bool:
    return beginning.lstrip().startswith("<!doctype html>") and "<title>Audit of " in beginning


def write_page(figures: Mapping[str, Any], target: OutputFile) -> None:
    """Write the report. The same figures give the same bytes. Raises RmcliError when it cannot be written."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    check_plots()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.tests["figure"] = _is_figure
    width = EXCERPT_CHARACTERS
    text = environment.get_template("page.html").render(
        figures=figures,
        plots=_plots(figures),
        lengths=screen.length_rows(figures),
        splits=screen.split_rows(figures),
        sources=screen.source_rows(figures),
        summary=screen.summary_lines(figures),
        ending_columns=screen.ENDING_COLUMNS,
        endings=screen.ending_rows(figures),
        near_columns=screen.NEAR_COLUMNS,
        near=screen.near_rows(figures, width),
        extreme_columns=screen.EXTREME_COLUMNS,
        extremes=[
            (title, screen.extreme_rows(figures["extremes"][name], width))
            for name, title in screen.EXTREME_TITLES.items()
        ],
    )
    with target.open() as file:
        file.write(text)


def _is_figure(cell: object) -> bool:
    """Numbers, and what reads as one: 96.4%, 1.57, 15/9, a dash for none."""
    return isinstance(cell, int | float) or bool(re.fullmatch(r"-|[\d.,]+%?(/[\d.,]+)?", str(cell)))


def _plots(figures: Mapping[str, Any]) -> list[Any]:
    """The plots as SVG that a template may print as it is."""
    splits = figures["splits"]
    found = [_lengths_plot(splits, name) for name in ("conversation", "prompt", "response")]
    found.append(_fill_plot(splits))
    decided = [one for one in figures["sources"] if one["longer_wins_share"] is not None]
    if decided:
        found.append(_sources_plot(decided))
    return found


def _lengths_plot(splits: Mapping[str, Any], name: str) -> Any:
    def draw(axes: "Axes") -> None:
        for split, values in splits.items():
            lengths = values["lengths"][name]
            if lengths["number"]:
                counts, width = lengths["histogram"]["counts"], lengths["histogram"]["bin_tokens"]
                share = [count / lengths["number"] for count in counts]
                edges = [width * index for index in range(len(counts) + 1)]
                axes.stairs(share, edges, fill=split == "train", alpha=0.6, color=COLOURS[split], label=split)
        axes.set(title=f"{name} length", xlabel="tokens", ylabel="share")
        axes.legend()

    return _svg(draw, name)


def _fill_plot(splits: Mapping[str, Any]) -> Any:
    def draw(axes: "Axes") -> None:
        for split, values in splits.items():
            counts = values["pack_fill_histogram"]
            edges = [index / len(counts) for index in range(len(counts) + 1)]
            axes.stairs(counts, edges, fill=split == "train", alpha=0.6, color=COLOURS[split], label=split)
        axes.set(title="pack fill", xlabel="share of max_packed_length", ylabel="packs")
        axes.legend()

    return _svg(draw, "fill")


def _sources_plot(sources: Sequence[Mapping[str, Any]]) -> Any:
    def draw(axes: "Axes") -> None:
        names = [f"{number}: {_plain(Path(one['source']).name)}" for number, one in enumerate(sources)]
        axes.barh(names, [one["longer_wins_share"] for one in sources], color=COLOURS["train"])
        axes.axvline(0.5, color="#666", linewidth=1)
        axes.set(title="the longer answer wins", xlabel="share of decided comparisons", xlim=(0, 1))

    return _svg(draw, "sources")


def _plain(name: str) -> str:
    """For a plot: its font lacks most letters, and matplotlib reads $ as mathematics."""
    return name.encode("ascii", errors="replace").decode("ascii").replace("$", r"\$")


def _svg(draw: Any, salt: str) -> Any:
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    # Text stays text, and nothing depends on the clock or on chance.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return Markup(text[text.index("<svg") :])  # an HTML page has its own first lines
