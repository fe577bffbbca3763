"""The page of an evaluation, from its metrics.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError
from rmcli.metrics.names import EVALUATION_FILE, KIND
from rmcli.output_files import OutputFile
from rmcli.report.judged import overview_row, set_view, suite_view
from rmcli.report.page import check_plots, page_file, write_page
from rmcli.report.values import decimal, flat, mapping, mappings, number, text

TITLE = "Evaluation of "


def read_evaluation(path: Path) -> dict[str, Any]:
    """What metrics.json says. Raises ConfigError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "no JSON"
        raise ConfigError(f"{path} cannot be read: {reason}", _HINT) from error
    if not isinstance(found, dict) or found.get("kind") != KIND or not isinstance(found.get("sets"), list):
        raise ConfigError(f"{path} is no {EVALUATION_FILE} of an evaluation", _HINT)
    return found


_HINT = f"name a run's folder, or the {EVALUATION_FILE} that an evaluation wrote"


def evaluation_file(path: Path, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> OutputFile:
    """Where the page goes; an earlier evaluation's page may be replaced."""
    return page_file(path, "evaluation report", TITLE, overwrite, inputs)


def write_evaluation(metrics: Mapping[str, Any], target: OutputFile) -> None:
    """Write the page. The same figures give the same bytes.

    Raises ConfigError without matplotlib, RmcliError when the page cannot be written.
    """
    check_plots("a report")
    write_page(
        target,
        "evaluation.html",
        {
            "title": f"{TITLE}{text(metrics.get('model'))}",
            **sets_and_suites(metrics),
            "overview": [overview_row(one) for one in mappings(metrics.get("sets"))],
            "about": _about(metrics),
            "config": [[key, text(value)] for key, value in flat(mapping(metrics.get("config"))).items()],
            "versions": version_rows(metrics),
        },
    )


def sets_and_suites(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a page shows of each set and suite of an evaluation."""
    other = text(metrics.get("against") or "another model")
    sets = mappings(metrics.get("sets"))
    return {
        "sets": [set_view(one, f"set {place}", other) for place, one in enumerate(sets)],
        "suites": [suite_view(one) for one in mappings(metrics.get("suites"))],
    }


def version_rows(told: Mapping[str, Any]) -> list[list[str]]:
    return [[name, text(version)] for name, version in flat(mapping(told.get("versions"))).items()]


def _about(metrics: Mapping[str, Any]) -> list[list[Any]]:
    speed = metrics.get("conversations_per_second")
    rows = [
        ["model", metrics.get("model")],
        ["its sha256", metrics.get("model_sha256")],
        ["against", metrics.get("against")],
        ["its sha256", metrics.get("against_sha256")],
        ["conversations", _whole(metrics.get("conversations"))],
        ["seconds", None if number(metrics.get("seconds")) is None else decimal(metrics["seconds"], 1)],
        ["conversations per second", None if number(speed) is None else decimal(speed, 1)],
        *([f"not measured: {name}", why] for name, why in mapping(metrics.get("not_measured")).items()),
        *([f"machine: {name}", value] for name, value in flat(mapping(metrics.get("machine"))).items()),
    ]
    return [[name, value if isinstance(value, int) else text(value)] for name, value in rows if value is not None]


def _whole(value: Any) -> int | None:
    return None if number(value) is None else int(value)
