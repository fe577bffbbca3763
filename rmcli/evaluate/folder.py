"""Where an evaluation is kept: metrics.json and report.html in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.errors import ConfigError
from rmcli.metrics.names import EVALUATION_FILE, KIND, as_json
from rmcli.output_files import OutputFile
from rmcli.report.evaluation import evaluation_file, write_evaluation
from rmcli.report.page import check_plots
from rmcli.report.run import PAGE

ROOT = Path("evaluations")


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
            file.write(as_json(found))

    def write_report(self, found: Mapping[str, Any]) -> bool:
        """Whether there is a page: without matplotlib there is none, which is said."""
        try:
            check_plots("a report")
        except ConfigError as error:
            output.say(f"no {PAGE}: {error.message}; {error.hint}")
            return False
        write_evaluation(found, self.report)
        return True


def place(folder: Path | None, model: Path, overwrite: bool, inputs: Sequence[str]) -> Place:
    """The folder asked for, or the next free one under evaluations/.

    Raises ConfigError for a file, and for a folder that is read: what lies there is the model's or the set's own.
    """
    folder = folder or _next(model)
    if folder.is_file():
        raise ConfigError(f"-o {folder} is a file", "name a folder: metrics.json and report.html go there")
    for read in (model, *inputs):
        if folder.is_dir() and Path(read).is_dir() and folder.samefile(read):
            what = "model" if read == model else "input"
            raise ConfigError(f"-o {folder} is read: it is the {what}", "name another")
    return Place(
        OutputFile(folder / EVALUATION_FILE, "metrics of an evaluation", _are_metrics, overwrite, inputs),
        evaluation_file(folder / PAGE, overwrite, inputs),
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
    return f'"kind": "{KIND}"' in beginning[:100]
