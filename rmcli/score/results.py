"""Lines out: one JSON line per line in, and what all of them come to."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from math import inf
from pathlib import Path
from typing import Any

import torch

from rmcli import output
from rmcli.lines.read import Line
from rmcli.model.batch import build_targets
from rmcli.model.metrics import PairMetrics
from rmcli.output_files import OutputFile, check_stdout
from rmcli.scorer.scorer import Score, Scored
from rmcli.tokens.encode import NOTED

# What a result is made of: a column of the input with such a name does not come back.
RESULT_KEYS = frozenset({"score", "scores", "chosen_score", "rejected_score", "margin", "truncated", "error"})
# The lines of prompts hold texts as well: what each kind of them has, its score first.
_OF_PROMPTS = (
    ("scores", "best", "prompt", "completions"),
    ("score", "margin", "best", "prompt", "completion"),
    ("chosen_score", "rejected_score", "margin", "prompt", "chosen", "rejected"),
)
LOW_SCORE = "below_min_score"  # why a line is not written
CONVERSATION_KEYS = {"messages", "conversations", "prompt", "question", "chosen", "rejected", "response", "responses"}


@dataclass
class Summary:
    """What was scored: rows in, scores and errors out, and the metrics of the pairs among them.

    Of prompts also how many there were, and their answers; `told` of them; and of what is `left_out`, why.
    """

    lines: int = 0
    prompts: int = 0
    answers: int = 0
    written: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # of lines with a score
    told: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_error: str | None = None
    pairs: PairMetrics = field(default_factory=PairMetrics)
    not_kept: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"lines": self.lines, "errors": dict(self.errors), "truncated": self.truncated}
        if self.noted:
            numbers["noted"] = dict(self.noted)
        if self.prompts:
            numbers |= {"prompts": self.prompts, "answers": self.answers}
        if self.prompts or self.left_out:
            numbers |= {"written": self.written, "left_out": dict(self.left_out)}
        if self.pairs.num_pairs:
            result = self.pairs.result()
            numbers |= {"pairs": self.pairs.num_pairs, "accuracy": result["accuracy"], "margin": result["margin"]}
        return numbers

    def as_state(self) -> dict[str, Any]:
        """All of it as JSON has it, for who goes on counting: `Summary.of_state`."""
        pairs = [self.pairs.num_pairs, self.pairs.num_scores, [part.tolist() for part in self.pairs.parts]]
        return {**vars(self), "pairs": pairs, "not_kept": sorted(self.not_kept)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Summary":
        num_pairs, num_scores, parts = state["pairs"]
        counters = {name: Counter(state[name]) for name in ("errors", "noted", "told", "left_out")}
        pairs = PairMetrics(num_pairs, num_scores, [torch.tensor(part) for part in parts])
        return cls(**{**state, **counters, "pairs": pairs, "not_kept": set(state["not_kept"])})

    def add(self, line: Line, scored: Scored | str, min_score: float = -inf) -> str | None:
        """Count a line and give its result as JSON, which never holds NaN; None where all its scores are lower."""
        self.lines += 1
        if isinstance(scored, str):
            return self.error(scored, line.where, line.kept)
        self.truncated += scored.tokens.truncated
        self.noted.update(scored.tokens.noted)
        targets = build_targets([scored.tokens], "ranking") if scored.tokens.comparisons else None
        if targets is not None and len(scored.scores) > 1 and len(targets.better):
            self.pairs.add(torch.tensor(scored.scores), targets.better, targets.worse)
        if rounded(max(scored.scores)) < min_score:  # as it is written
            self.left_out[LOW_SCORE] += 1
            return None
        return self.result(_as_result(line.form, scored), line.kept)

    def add_prompt(self, where: str, scores: Sequence[Score], answers: int, best_of: int | None) -> None:
        """Count a prompt that has so many answers, of which those with these scores were looked at."""
        self.prompts += 1
        self.answers += len(scores)
        self.truncated += sum(score.truncated for score in scores)
        for reason in (score.error for score in scores if score.error is not None):
            self.errors[reason] += 1
            self.first_error = self.first_error or f"{reason} at {where}"
        if best_of is not None and answers > best_of:
            self.told[f"more than {best_of} answers, of which the first {best_of} count"] += 1
        if best_of is not None and answers < best_of:
            self.told[f"fewer than {best_of} answers"] += 1

    def error(self, reason: str, where: str, kept: Mapping[str, Any]) -> str:
        """Count a row that has no score, and give its line."""
        self.errors[reason] += 1
        self.first_error = self.first_error or f"{reason} at {where}"
        return dumps({"error": reason} | self._kept(kept, ()), ensure_ascii=False)

    def result(self, found: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
        """Count a line that is written, and give it as JSON."""
        self.written += 1
        return dumps({**found, **self._kept(kept, found)}, ensure_ascii=False, allow_nan=False)

    def _kept(self, kept: Mapping[str, Any], found: Collection[str]) -> dict[str, Any]:
        taken = RESULT_KEYS.union(found)
        for column in sorted(taken & kept.keys() - self.not_kept):
            self.not_kept.add(column)
            output.warn(f"the input's column {column} does not come back: the results have one of that name")
        return {column: _plain(value) for column, value in kept.items() if column not in taken}


def report(summary: Summary) -> None:
    """The figures, for a person."""
    values = summary.as_dict()
    of_prompts = f", {summary.prompts:,} prompts, {summary.answers:,} answers" * bool(summary.prompts)
    truncated = f", {summary.truncated:,} truncated" * bool(summary.truncated)
    output.say(f"{values['lines']:,} lines scored{of_prompts}{truncated}")
    if "written" in values:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in summary.left_out.items())
        output.say(f"{summary.written:,} lines written; left out: {left_out or 'none'}")
    for what, count in summary.told.items():
        output.warn(f"{count:,} of {summary.prompts:,} prompts: {what}")
    of_all = f"{summary.answers:,} answers" if summary.prompts else f"{summary.lines:,} lines"
    for name, count in summary.noted.items():
        output.warn(f"{count:,} of {of_all}: {NOTED[name]}")
    if "pairs" in values:
        output.say(
            f"{values['pairs']:,} pairs: accuracy {values['accuracy']:.3f}, mean margin {values['margin']:.3f}"
        )


def _as_result(form: str, scored: Scored) -> dict[str, Any]:
    scores = [rounded(score) for score in scored.scores]
    if form == "pair":
        margin = rounded(scored.scores[0] - scored.scores[1])
        result: dict[str, Any] = {"chosen_score": scores[0], "rejected_score": scores[1], "margin": margin}
    else:
        result = {"score": scores[0]} if form == "score" else {"scores": scores}
    return result | ({"truncated": True} if scored.tokens.truncated else {})


def rounded(score: float) -> float:
    """The seven digits that float32 has."""
    return float(f"{score:.7g}")


def _plain(value: Any) -> Any:
    """The value as it is, or as text where JSON has no such value: a date, bytes, NaN."""
    try:
        dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


def output_file(inputs: Sequence[str], target: str, overwrite: bool = False) -> OutputFile | None:
    """Where scores go, None for stdout. Raises ConfigError where something else would be lost."""
    if target == "-":
        check_stdout(inputs)
        return None
    file = OutputFile(Path(target), "scores", _are_scores, overwrite, inputs)
    file.check()
    return file


def _begins_with(keys: tuple[str, ...]) -> str:
    """How a line begins whose first keys, up to its prompt, hold numbers."""
    return r"\{" + r"[^\"]*".join(f'"{key}": ' for key in keys[: keys.index("prompt") + 1])


def _are_scores(beginning: str) -> bool:
    """Whether the first line is one that `score` writes, and none that it reads."""
    line, *others = beginning.strip().split("\n", 1)
    try:
        first = loads(line)
    except ValueError:  # a long prompt goes beyond the beginning
        return not others and any(re.match(_begins_with(keys), line) for keys in _OF_PROMPTS)
    if not isinstance(first, dict):
        return False
    is_of_prompt = any(first.keys() >= set(keys) for keys in _OF_PROMPTS)
    return is_of_prompt or (bool(first.keys() & RESULT_KEYS) and not first.keys() & CONVERSATION_KEYS)
