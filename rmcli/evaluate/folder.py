"""Where an evaluation is kept: metrics.json and report.html in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcli.output_files import OutputFile

ROOT, METRICS, REPORT = Path("evaluations"), "metrics.json", "report.html"


@dataclass(frozen=True)
class Place:
    """The files of one evaluation, each there whole or not at all."""

    metrics: OutputFile
    report: OutputFile

    @property
    def folder(self) -> Path:
        return self.metrics.path.parent

    def check(self) -> None:
        """Before any work. Raises ConfigError where something else would be lost, RmcliError where none can be."""
        self.metrics.check()
        self.report.check()

    def write_metrics(self, found: Mapping[str, Any]) -> None:
        with self.metrics.open() as file:
            file.write(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def place(folder: Path | None, model: Path, overwrite: bool, inputs: Sequence[str]) -> Place:
    """The folder asked for, or the next free one under evaluations/."""
    folder = folder or _next(model)
    return Place(
        OutputFile(folder / METRICS, "metrics of an evaluation", _are_metrics, overwrite, inputs),
        OutputFile(folder / REPORT, "report of an evaluation", _is_report, overwrite, inputs),
    )


def _next(model: Path) -> Path:
    """Named after the run that the model is of, else after the model."""
    folder = model.absolute()
    name = folder.parent.name if folder.name in ("model", "model-best") else folder.name
    number = 1
    while (ROOT / f"{name}-{number}").exists():
        number += 1
    return ROOT / f"{name}-{number}"


def _are_metrics(beginning: str) -> bool:
    return '"kind": "rmcli evaluation"' in beginning[:100]


def _is_report(beginning: str) -> bool:
    return beginning.lstrip().startswith("<!doctype html>") and "<title>Evaluation of " in beginning
