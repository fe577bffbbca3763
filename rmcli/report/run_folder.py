"""A run folder read for its page: what it is, its log, its evaluation. Whatever is missing is left out."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError
from rmcli.metrics.names import EVALUATION_FILE, MARGINS_FILE
from rmcli.report.evaluation import read_evaluation
from rmcli.report.values import mapping, number, text
from rmcli.rows.files import is_url
from rmcli.runs import record
from rmcli.runs.folder import CONFIG_FILE
from rmcli.runs.metrics_file import METRICS_FILE

_EVAL, _MARGIN = "eval_", "_margin"
_FILES = (record.FILE, CONFIG_FILE, METRICS_FILE, EVALUATION_FILE, MARGINS_FILE)


@dataclass(frozen=True)
class Run:
    """A run, or with `told` empty an evaluation alone.

    `told` is run.json, `toml` the resolved configuration, `log` the lines of metrics.jsonl between evaluations and
    `evaluations` those of evaluations, both in order of steps; `metrics` is metrics.json, None where there is none or
    it is not of the last evaluation. `notes`: what of the folder is left out, and why, in sentences.
    """

    path: Path
    told: Mapping[str, Any] = field(default_factory=dict)
    toml: str = ""
    log: tuple[Mapping[str, Any], ...] = ()
    evaluations: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All that is read of it."""
        return [self.path / name for name in _FILES] if self.path.is_dir() else [self.path]

    @property
    def last_step(self) -> Any:
        """The last one that metrics.jsonl tells of; None without any."""
        return max((line["step"] for line in (*self.log, *self.evaluations)), default=None)

    @property
    def evaluated_at(self) -> Any:
        """The step of the last evaluation; None without any, and of an evaluation alone."""
        return self.evaluations[-1]["step"] if self.evaluations else _step_of(self.metrics)

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


def check_local(names: Iterable[str]) -> None:
    """Raises ConfigError for a URL."""
    for name in names:
        if is_url(name):
            raise ConfigError(
                f"{name} is a URL, and a report is made of what lies on this machine",
                f"fetch it, and name the run's folder or an evaluation's {EVALUATION_FILE}",
            )


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
    run = Run(path, told, _text(path / CONFIG_FILE), log, evaluations)
    metrics, notes = _last_evaluation(run)
    return replace(run, metrics=metrics, notes=notes)


def _last_evaluation(run: Run) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """metrics.json, where it is of the run's last evaluation; else what is wrong with it.

    A run that went on after it was written, or from a checkpoint before it, has an earlier or a later one there.
    """
    path = run.path / EVALUATION_FILE
    if not path.is_file():
        return None, ()
    try:
        metrics = read_evaluation(path)
    except ConfigError as error:
        return None, (f"{error.message}: {_LEFT_OUT}.",)
    step, expected = _step_of(metrics), run.last_step if run.evaluated_at is None else run.evaluated_at
    if expected is None or step == expected:
        return metrics, ()
    of = "no step that it names" if step is None else f"step {text(step)}"
    last = "evaluation" if run.evaluations else "line"
    return None, (f"{path} is of {of}, the last {last} of {METRICS_FILE} of step {text(expected)}: {_LEFT_OUT}.",)


_LEFT_OUT = f"it is left out here, and so is {MARGINS_FILE}"


def _step_of(metrics: Mapping[str, Any] | None) -> Any:
    return number(mapping(mapping(metrics).get("run")).get("step"))


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
