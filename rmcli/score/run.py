"""`rmcli score`: JSON lines of conversations or pairs -> JSON lines of scores, in the same order."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from json import dumps, loads
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcli import output
from rmcli.backbones.architectures import choose_batches
from rmcli.config.sections import Config
from rmcli.errors import RmcliError, Skip
from rmcli.model import forward, self_test
from rmcli.model.backend import check_attention
from rmcli.model.batch import build_batch, build_targets
from rmcli.model.device import pick_device
from rmcli.model.load import load_model
from rmcli.model.metrics import PairMetrics
from rmcli.output_files import OutputFile, check_stdout
from rmcli.packs import pack
from rmcli.records import BatchKind, PreferenceGroup, TokenGroup
from rmcli.rows import sources
from rmcli.rows.files import read_lines
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.fields import as_messages
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_model_config, load_tokenizer

WINDOW = 1024  # lines read, packed and scored together

RESULT_KEYS = {"score", "scores", "chosen_score", "error"}
CONVERSATION_KEYS = {"messages", "conversations", "prompt", "question", "chosen", "rejected", "response", "responses"}

# A pair that training cannot use can still be scored, each side for itself.
SCORED_APART = {"overlong", "chosen_equals_rejected", "identical_after_truncation"}


@dataclass
class Summary:
    """What was scored: lines in, scores and errors out, and the metrics of the pairs among them."""

    lines: int = 0
    truncated: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    pairs: PairMetrics = field(default_factory=PairMetrics)

    def as_dict(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"lines": self.lines, "errors": dict(self.errors), "truncated": self.truncated}
        if self.pairs.num_pairs:
            result = self.pairs.result()
            numbers |= {"pairs": self.pairs.num_pairs, "accuracy": result["accuracy"], "margin": result["margin"]}
        return numbers


def run(config: Config, source: str, target: str, overwrite: bool = False) -> Summary:
    """Score every line of `source` into `target` ("-" is stdin and stdout).

    Raises ConfigError when `target` is there already and not to be overwritten, or holds anything but scores.
    """
    results_file = output_file(source, target, overwrite)
    reward = load_tokenizer(config.model)
    encoder = Encoder(reward, config.data.max_length, config.data.overlong)
    device = pick_device(config)
    model_config = load_model_config(config.model)
    choice = choose_batches(config.model.use_varlen_attn, model_config, config.data.max_length)
    check_attention(config, model_config, choice.kind, device)
    lines = _read(source)
    network: Any = load_model(config.model, reward, kind=choice.kind, device=device)
    kind = self_test.settle_batches(network, choice, config.model.dtype).kind
    scorer = _Scorer(network, encoder, config, kind)
    summary = Summary()
    with _open_output(results_file) as results:
        numbered = enumerate(lines, 1)
        while window := list(islice(numbered, WINDOW)):
            for line in _score_window(scorer, source, window, summary):
                results.write(dumps(line, ensure_ascii=False) + "\n")
            results.flush()
    return summary


@dataclass(frozen=True)
class _Scorer:
    """A model ready to score: `kind` is how it runs conversations."""

    network: Any
    encoder: Encoder
    config: Config
    kind: BatchKind


def report(summary: Summary) -> None:
    """The figures, for a person."""
    values = summary.as_dict()
    output.say(f"{values['lines']:,} lines scored" + (f", {summary.truncated:,} truncated" * bool(summary.truncated)))
    if "pairs" in values:
        output.say(
            f"{values['pairs']:,} pairs: accuracy {values['accuracy']:.3f}, mean margin {values['margin']:.3f}"
        )


def _score_window(
    scorer: _Scorer, source: str, window: list[tuple[int, bytes]], summary: Summary
) -> list[dict[str, Any]]:
    """One result per line, in order."""
    parsed = [_parse(source, number, data) for number, data in window]
    groups = [group for group in parsed if isinstance(group, PreferenceGroup)]
    encoded = iter(_encode(scorer.encoder, groups))
    entries = [next(encoded) if isinstance(group, PreferenceGroup) else group for group in parsed]
    token_groups = {at: entry for at, entry in enumerate(entries) if isinstance(entry, TokenGroup)}
    scores = dict(zip(token_groups, _run(scorer, list(token_groups.values())), strict=True))
    results = []
    for at, entry in enumerate(entries):
        summary.lines += 1
        if isinstance(entry, str):
            summary.errors[entry] += 1
            results.append({"error": entry})
        else:
            results.append(_as_result(entry, scores[at]))
            summary.truncated += entry.truncated
            targets = build_targets([entry], "ranking") if len(scores[at]) > 1 else None
            if targets is not None and len(targets.better):
                summary.pairs.add(torch.tensor(scores[at]), targets.better, targets.worse)
    return results


def _parse(source: str, number: int, data: bytes) -> PreferenceGroup | str:
    if not data.strip():
        return "empty_line"  # one result per line, whatever the line
    row = sources.parse_json_row(0, source, number, data)
    if row.value is None:
        return row.problem or "wrong_type"
    try:
        if "messages" in row.value:
            return PreferenceGroup((as_messages(row.value["messages"]),))
        return apply(NAMED["canonical"], row.value, f"{source}:{number}", best_first=False)
    except Skip as skip:
        return skip.reason


def _encode(encoder: Encoder, groups: list[PreferenceGroup]) -> list[TokenGroup | str]:
    results = encoder.encode(groups)
    for at, result in enumerate(results):
        if isinstance(result, str) and result in SCORED_APART and len(groups[at].conversations) > 1:
            results[at] = _encode_apart(encoder, groups[at])
    return results


def _encode_apart(encoder: Encoder, group: PreferenceGroup) -> TokenGroup | str:
    sides = encoder.encode([PreferenceGroup((conversation,)) for conversation in group.conversations])
    problems = [side for side in sides if isinstance(side, str)]
    if problems:
        return problems[0]
    whole = [side for side in sides if isinstance(side, TokenGroup)]
    return TokenGroup(
        prefix=np.empty(0, dtype=np.int32),
        responses=tuple(side.responses[0] for side in whole),
        truncated=any(side.truncated for side in whole),
        comparisons=group.comparisons,
    )


@torch.no_grad()
def _run(scorer: _Scorer, groups: list[TokenGroup]) -> list[list[float]]:
    """Scores of each group's conversations."""
    network, config = scorer.network, scorer.config
    capacity = max([config.data.max_packed_length, *(group.num_tokens for group in groups)])
    results: list[list[float]] = [[] for _ in groups]
    for members in pack.best_fit_decreasing([group.num_tokens for group in groups], capacity):
        chunk = [groups[index] for index in members]
        together = [[group] for group in chunk] if scorer.kind == "padded" else [chunk]
        values: list[float] = []
        for part in together:
            batch = build_batch(scorer.kind, part, scorer.encoder.reward.pad_token_id, network.device)
            values += forward.scores(network, batch, config.model.dtype).tolist()
        for index in members:
            count = len(groups[index].responses)
            results[index], values = values[:count], values[count:]
    return results


def _as_result(group: TokenGroup, scores: list[float]) -> dict[str, Any]:
    rounded = [float(f"{score:.7g}") for score in scores]  # float32 has seven digits
    if len(rounded) == 1:
        result: dict[str, Any] = {"score": rounded[0]}
    elif len(rounded) > 2:
        result = {"scores": rounded}
    else:
        margin = float(f"{scores[0] - scores[1]:.7g}")
        result = {"chosen_score": rounded[0], "rejected_score": rounded[1], "margin": margin}
    return result | ({"truncated": True} if group.truncated else {})


def _read(source: str) -> Iterator[bytes]:
    if source == "-":
        return iter(sys.stdin.buffer)
    path = Path(source)
    if path.is_dir():
        raise RmcliError(f"input {source} is a folder", "give a .jsonl file, or - for stdin")
    if not path.is_file():
        raise RmcliError(f"input {source}: no such file", "give a .jsonl file, or - for stdin")
    return read_lines(path)


@contextmanager
def _open_output(target: OutputFile | None) -> Iterator[output.Lines]:
    """stdout, or a file that appears only when it is complete; a device or pipe is written as it is."""
    if target is None:
        yield output.answer_stream()
        return
    with target.open() as file:
        yield file


def output_file(source: str, target: str, overwrite: bool = False) -> OutputFile | None:
    """Where scores go, None for stdout. Raises ConfigError where something else would be lost."""
    if target == "-":
        check_stdout([source])
        return None
    file = OutputFile(Path(target), "scores", _are_scores, overwrite, [source])
    file.check()
    return file


def _are_scores(beginning: str) -> bool:
    """Whether the first line is one that `run` writes, and none that it reads."""
    try:
        first = loads(beginning.strip().split("\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and bool(first.keys() & RESULT_KEYS) and not first.keys() & CONVERSATION_KEYS
