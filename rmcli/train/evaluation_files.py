"""What a run's last evaluation leaves in its folder: `metrics.json`, as `rmcli evaluate` writes it, and the margin of
each comparison in `eval_margins.jsonl`, by which two runs are compared pair by pair.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcli import output
from rmcli.errors import RmcliError, explained
from rmcli.metrics.figures import figures
from rmcli.metrics.judged import Judged
from rmcli.metrics.names import EVALUATION_FILE, KIND, MARGINS_FILE, as_json
from rmcli.metrics.slices import by_length_difference, by_value
from rmcli.model import hashes
from rmcli.parallel import world
from rmcli.parallel.collectives import on_first
from rmcli.runs import record
from rmcli.runs.folder import MODEL
from rmcli.runs.whole_file import write_whole
from rmcli.train.evaluated import EvaluatedSet, each_row_once
from rmcli.train.job import Job
from rmcli.train.scored import are_finite, judged
from rmcli.train.worst import worst_of


def write_evaluation(job: Job, step: int, evaluated: Sequence[EvaluatedSet]) -> None:
    """Both files, by the first process. Where they cannot be written that is said, and the run goes on: whatever goes
    wrong here costs no checkpoint and no model."""
    if evaluated:
        on_first(lambda: _write(job, step, [each_row_once(one) for one in evaluated]))


def _write(job: Job, step: int, evaluated: Sequence[EvaluatedSet]) -> None:
    try:
        with explained(f"{job.run_folder / EVALUATION_FILE} and {MARGINS_FILE} are not written"):
            judged_sets = [judged(one.scored) for one in evaluated]
            write_whole(job.run_folder / MARGINS_FILE, "".join(_margins(evaluated, judged_sets)))
            write_whole(job.run_folder / EVALUATION_FILE, as_json(_told(job, step, evaluated, judged_sets)))
    except RmcliError as error:
        output.warn(f"{error.message}; the figures are in metrics.jsonl, and the run goes on")


def name_model(run_folder: Path, model: Path, step: int) -> None:
    """Put the sha256 of the exported model into `metrics.json`, where there is one of this step."""
    path = run_folder / EVALUATION_FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["run"]["step"] == step:
            write_whole(path, as_json({**told, "model_sha256": hashes.of_folder(model, is_verified=True)}))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        output.warn(f"{path} does not say which model it is of: {getattr(error, 'strerror', None) or error}")


def _told(job: Job, step: int, evaluated: Sequence[EvaluatedSet], judged_sets: Sequence[Judged]) -> dict[str, Any]:
    seconds = sum(one.seconds for one in evaluated)
    conversations = sum(len(group.scores) for one in evaluated for group in one.scored)
    return {
        "kind": KIND,
        "model": str(job.run_folder / MODEL),
        "model_sha256": None,  # known once it is exported
        "against": None,
        "against_sha256": None,
        "versions": record.versions(),
        "machine": {"device": job.device.type, "threads": torch.get_num_threads(), "processes": world.size()},
        "config": job.config.model_dump(mode="json"),
        "seconds": seconds,
        "conversations": conversations,
        "conversations_per_second": conversations / seconds,
        "run": {"path": str(job.run_folder), "name": job.resolved.name, "step": step},
        "sets": [_set(job, one, its) for one, its in zip(evaluated, judged_sets, strict=True)],
        "not_measured": {},
        "suites": [],
    }


def _set(job: Job, one: EvaluatedSet, its: Judged) -> dict[str, Any]:
    """What was not measured is null, [] or {}: all that is made of scores where one of these is not finite."""
    finite = are_finite(one.scored)
    return {
        "name": one.of.title,
        "input": str(one.of.folder),
        "map_fn": None,
        "lines": sum(one.of.split.groups_per_pack),
        "errors": {"not_of_the_loss": one.of.left_out} if one.of.left_out else {},
        "truncated": None,
        "noted": {"repeated_rows": one.num_repeated} if one.num_repeated else {},
        "figures": figures(its) if finite else {},
        "by": _by(one, its) if finite else {},
        "against": None,
        "format_bias": [],
        "worst": worst_of(one, its, job.reward.tokenizer) if finite else [],
    }


def _by(one: EvaluatedSet, its: Judged) -> dict[str, list[dict[str, Any]]]:
    names = one.of.source_names
    sources = [one.scored[group].source_id for group in its.groups.tolist()]
    return {
        "source": by_value(its, [names[source] if source < len(names) else str(source) for source in sources]),
        "length_difference": by_length_difference(its),
        "turns": [],
    }


def _margins(evaluated: Sequence[EvaluatedSet], judged_sets: Sequence[Judged]) -> Iterator[str]:
    """A line for each comparison; `first` is the better one of its row's answers, `second` the worse one."""
    for one, its in zip(evaluated, judged_sets, strict=True):
        starts = one.first_answers
        with np.errstate(invalid="ignore"):  # infinite scores
            margins = its.margins.tolist()
        rows = zip(its.groups.tolist(), its.better.tolist(), its.worse.tolist(), margins, strict=True)
        for group, better, worse, margin in rows:
            told = {
                "set": one.of.title,
                "row_id": one.scored[group].row_id,
                "first": better - starts[group],
                "second": worse - starts[group],
                "margin": margin if math.isfinite(margin) else None,
            }
            yield json.dumps(told) + "\n"
