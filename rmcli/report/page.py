"""One HTML file that needs nothing else, in one style: templates by jinja2, plots as SVG inside."""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError, explained_by
from rmcli.installed import install_command
from rmcli.output_files import OutputFile
from rmcli.tables import CONTROLS

_HERE = Path(__file__).parent
_SIGNED = '<meta name="generator" content="rmcli">'
_FIGURE = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?%?(/[\d.,]+)?( to [-+]?[\d.,]+)?")
_CONTROLS = {code: shown for code, shown in CONTROLS.items() if chr(code) != "\t"}
# Those that turn what follows, too: what a page shows of a text stands in the order in which a model reads it.
_CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def check_plots(what: str) -> None:
    """Raise ConfigError, before any work, when the package that `what` draws with is missing or broken."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"{what} draws with matplotlib, which is not installed", f"run: {install_command('report')}"
        )
    with explained_by(lambda error: _broken(what, error)):
        importlib.import_module("matplotlib.figure")


def _broken(what: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ConfigError(
        f"{what} draws with matplotlib, which cannot be imported: {reason}",
        f"install it anew: {install_command('report')}",
    )


def page_file(
    path: Path, what: str, title: str, overwrite: bool, inputs: Sequence[str | Path], is_signed: bool = True
) -> OutputFile:
    """Where a page goes. An earlier one, which `overwrite` may replace, is told by how its title begins.

    `what` it is called in errors. `is_signed`: it names rmcli, too, as all pages do but audits of before. Nothing is
    checked yet.
    """
    marks = [f"<title>{title}", *([_SIGNED] if is_signed else [])]

    def is_such(beginning: str) -> bool:
        return beginning.lstrip().startswith("<!doctype html>") and all(mark in beginning for mark in marks)

    return OutputFile(path, what, is_such, overwrite, inputs)


def write_page(target: OutputFile, template: str, values: dict[str, Any], folder: Path = _HERE) -> None:
    """Write the page that a `template` of `folder` makes. The same values give the same bytes.

    Raises RmcliError when it cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["figure"] = is_figure
    text = environment.get_template(template).render(values)
    with target.open() as file:
        file.write(text)


def is_figure(cell: object) -> bool:
    """Numbers, and what reads as one: 96.4%, 1.57, -3e-05, 15/9, 0.85 to 0.89, a dash for none."""
    return isinstance(cell, int | float) or bool(_FIGURE.fullmatch(str(cell)))


def readable(value: Any) -> Any:
    """Text with its control characters to be seen: HTML cannot hold most of them. Markup and what is no text stay."""
    if type(value) is not str:
        return value
    return value.replace("\r\n", "\n").translate(_CONTROLS)
