"""A run folder read for its page: what it is, its log, its evaluation. Whatever is missing is left out."""

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError
from rmcli.metrics.names import EVALUATION_FILE
from rmcli.report.evaluation import read_evaluation
from rmcli.report.values import mapping, number, text
from rmcli.runs import record
from rmcli.runs.folder import CONFIG_FILE
from rmcli.runs.metrics_file import METRICS_FILE

_EVAL, _MARGIN = "eval_", "_margin"


@dataclass(frozen=True)
class Run:
    """A run, or with `told` empty an evaluation alone.

    `told` is run.json, `toml` the resolved configuration, `log` the lines of metrics.jsonl between evaluations and
    `evaluations` those of evaluations, both in order of steps; `metrics` is metrics.json, None where there is none.
    """

    path: Path
    told: Mapping[str, Any] = field(default_factory=dict)
    toml: str = ""
    log: tuple[Mapping[str, Any], ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] | None = None

    @property
    def is_run(self) -> bool:
        return bool(self.told)

    @property
    def config(self) -> dict[str, Any]:
        """As sections; empty where it is not there or no TOML. An evaluation's is in its metrics.json."""
        if not self.is_run:
            return dict(mapping(mapping(self.metrics).get("config")))
        with suppress(ValueError, RecursionError):
            return tomllib.loads(self.toml)
        return {}

    @property
    def versions(self) -> Mapping[str, Any]:
        return mapping((self.told if self.is_run else mapping(self.metrics)).get("versions"))

    @property
    def status(self) -> str:
        return f"a run that {record.how_it_ended(self.told)}" if self.is_run else "an evaluation"

    @property
    def data(self) -> Mapping[str, Any]:
        """`folder` and `manifest_sha256` of what it trained on."""
        return mapping(self.told.get("data"))

    def points(self, name: str) -> list[tuple[float, float]]:
        """A figure by step, where it is a finite number; `eval_...` from the evaluations."""
        lines = self.evaluations if name.startswith(_EVAL) else self.log
        found = [(number(line.get("step")), number(line.get(name))) for line in lines]
        return [(step, value) for step, value in found if step is not None and value is not None]

    @property
    def sets(self) -> list[str]:
        """Names of the sets evaluated beside the pairs held out: X of eval_X_margin, which no part of a set has."""
        keys = {key: None for line in self.evaluations for key in line}
        names = [key[len(_EVAL) : -len(_MARGIN)] for key in keys if key.startswith(_EVAL) and key.endswith(_MARGIN)]
        return [name for name in names if name]


def collect(path: Path) -> Run:
    """The run of a folder, or the evaluation of a metrics.json. Raises ConfigError where it is neither."""
    if path.is_file():
        return Run(path, metrics=read_evaluation(path))
    told = record.read(path)
    if told is None:
        if (path / EVALUATION_FILE).is_file():
            return Run(path, metrics=read_evaluation(path / EVALUATION_FILE))
        what = f"holds no run: no whole {record.FILE}" if path.is_dir() else "is not there"
        raise ConfigError(
            f"{path} {what}", f"name what rmcli train has written, or an evaluation's {EVALUATION_FILE}"
        )
    log, evaluations = _lines(path / METRICS_FILE)
    metrics = read_evaluation(path / EVALUATION_FILE) if (path / EVALUATION_FILE).is_file() else None
    return Run(path, told, _text(path / CONFIG_FILE), log, evaluations, metrics)


def _lines(path: Path) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    """Log lines and evaluations. A line that a killed process left half written is passed over."""
    log, evaluations = [], []
    for line in _text(path).splitlines():
        with suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and number(values.get("step")) is not None:
                is_evaluation = any(key.startswith(_EVAL) for key in values)
                (evaluations if is_evaluation else log).append(values)
    return tuple(log), tuple(evaluations)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def name_of(run: Run) -> str:
    """The folder's own name, or the path where it has none."""
    return run.path.absolute().name or text(run.path)
