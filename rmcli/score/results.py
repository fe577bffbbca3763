"""Lines out: one JSON line per line in, and what all of them come to."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch

from rmcli import output
from rmcli.model.batch import build_targets
from rmcli.model.metrics import PairMetrics
from rmcli.output_files import OutputFile, check_stdout
from rmcli.score.lines import Line
from rmcli.scorer.scorer import Scored
from rmcli.tokens.encode import NOTED

# What a result is made of: a column of the input with such a name does not come back.
RESULT_KEYS = frozenset({"score", "scores", "chosen_score", "rejected_score", "margin", "truncated", "error"})
CONVERSATION_KEYS = {"messages", "conversations", "prompt", "question", "chosen", "rejected", "response", "responses"}


@dataclass
class Summary:
    """What was scored: lines in, scores and errors out, and the metrics of the pairs among them."""

    lines: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # of lines with a score
    pairs: PairMetrics = field(default_factory=PairMetrics)
    not_kept: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"lines": self.lines, "errors": dict(self.errors), "truncated": self.truncated}
        if self.noted:
            numbers["noted"] = dict(self.noted)
        if self.pairs.num_pairs:
            result = self.pairs.result()
            numbers |= {"pairs": self.pairs.num_pairs, "accuracy": result["accuracy"], "margin": result["margin"]}
        return numbers

    def add(self, line: Line, scored: Scored | str) -> str:
        """Count a line and give its result as JSON, which never holds NaN."""
        self.lines += 1
        if isinstance(scored, str):
            self.errors[scored] += 1
            return dumps({"error": scored} | self._kept(line), ensure_ascii=False)
        self.truncated += scored.tokens.truncated
        self.noted.update(scored.tokens.noted)
        targets = build_targets([scored.tokens], "ranking") if scored.tokens.comparisons else None
        if targets is not None and len(scored.scores) > 1 and len(targets.better):
            self.pairs.add(torch.tensor(scored.scores), targets.better, targets.worse)
        return dumps(_as_result(line.form, scored) | self._kept(line), ensure_ascii=False, allow_nan=False)

    def _kept(self, line: Line) -> dict[str, Any]:
        for column in RESULT_KEYS & line.kept.keys() - self.not_kept:
            self.not_kept.add(column)
            output.warn(f"the input's column {column} does not come back: the results have one of that name")
        return {column: _plain(value) for column, value in line.kept.items() if column not in RESULT_KEYS}


def report(summary: Summary) -> None:
    """The figures, for a person."""
    values = summary.as_dict()
    output.say(f"{values['lines']:,} lines scored" + (f", {summary.truncated:,} truncated" * bool(summary.truncated)))
    for name, count in summary.noted.items():
        output.warn(f"{count:,} of {summary.lines:,} lines: {NOTED[name]}")
    if "pairs" in values:
        output.say(
            f"{values['pairs']:,} pairs: accuracy {values['accuracy']:.3f}, mean margin {values['margin']:.3f}"
        )


def _as_result(form: str, scored: Scored) -> dict[str, Any]:
    rounded = [float(f"{score:.7g}") for score in scored.scores]  # float32 has seven digits
    if form == "pair":
        margin = float(f"{scored.scores[0] - scored.scores[1]:.7g}")
        result: dict[str, Any] = {"chosen_score": rounded[0], "rejected_score": rounded[1], "margin": margin}
    else:
        result = {"score": rounded[0]} if form == "score" else {"scores": rounded}
    return result | ({"truncated": True} if scored.tokens.truncated else {})


def _plain(value: Any) -> Any:
    """The value as it is, or as text where JSON has no such value: a date, bytes, NaN."""
    try:
        dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def output_file(source: str, target: str, overwrite: bool = False) -> OutputFile | None:
    """Where scores go, None for stdout. Raises ConfigError where something else would be lost."""
    if target == "-":
        check_stdout([source])
        return None
    file = OutputFile(Path(target), "scores", _are_scores, overwrite, [source])
    file.check()
    return file


def _are_scores(beginning: str) -> bool:
    """Whether the first line is one that `score` writes, and none that it reads."""
    try:
        first = loads(beginning.strip().split("\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and bool(first.keys() & RESULT_KEYS) and not first.keys() & CONVERSATION_KEYS


@contextmanager
def open_output(target: OutputFile | None) -> Iterator[output.Lines]:
    """stdout, or a file that appears only when it is complete; a device or pipe is written as it is."""
    if target is None:
        yield output.answer_stream()
        return
    with target.open() as file:
        yield file
