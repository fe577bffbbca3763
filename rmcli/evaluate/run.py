"""`rmcli evaluate`: sets and suites scored by a model, and by another one; all figures as one value."""

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rmcli import output
from rmcli.config.sections import Config, SourceSection
from rmcli.evaluate.against import compared
from rmcli.evaluate.by import by
from rmcli.evaluate.format_bias import format_bias
from rmcli.evaluate.gathered import Gathered
from rmcli.evaluate.sets import check_measured, gather, open_set, why_nothing
from rmcli.evaluate.suites.run import count_rows, evaluate_suite
from rmcli.evaluate.wanted import Wanted, name_of
from rmcli.metrics.figures import figures
from rmcli.metrics.names import KIND
from rmcli.model import hashes
from rmcli.parallel import world
from rmcli.parallel.agreement import check_same
from rmcli.runs.record import versions
from rmcli.scorer.load import load_encoder, load_scorer
from rmcli.scorer.scorer import Scorer


def run(config: Config, wanted: Wanted, against: Config | None = None, is_verified: bool = False) -> dict[str, Any]:
    """All figures, by the names of metrics.json (docs/evaluate.md). `against`: the other model's configuration.

    Of several processes all score; the first one reads and has the figures. `is_verified`: the models' files are
    known to be as their folders list them. A set that has nothing to compare is named under `not_measured` and costs
    the others nothing. Raises RmcliError where all are such, or a model is none.
    """
    if world.size() > 1:
        check_same({"wanted": wanted.as_options(), "model": config.model.model_dump(), **versions()})
    encoder = load_encoder(config)
    opened = [open_set(config, encoder, source, wanted) for source in wanted.sets]
    for suite, source in wanted.suites:
        count_rows(suite, source)  # what cannot be had is said before anything is scored
    scorer = load_scorer(config, encoder)
    started = time.monotonic()
    gathered = [gather(scorer, one, wanted) for one in opened]
    not_measured = _not_measured(wanted, gathered)
    seconds = time.monotonic() - started
    entries = [_entry(scorer, source, wanted, one) for source, one in zip(wanted.sets, gathered, strict=True)]
    suites = [evaluate_suite(config, encoder, scorer, suite, source) for suite, source in wanted.suites]
    del scorer
    if against is not None:
        _compare(against, wanted, gathered, entries, suites)
    scored = sum(one.conversations for one in gathered)
    return {
        "kind": KIND,
        **_of_model("model", config, is_verified),
        **_of_model("against", against, is_verified),
        "versions": versions(),
        "machine": {"device": config.train.device, "threads": torch.get_num_threads(), "processes": world.size()},
        "config": config.model_dump(mode="json"),
        "run": None,
        "seconds": seconds,
        "conversations": scored,
        "conversations_per_second": scored / seconds if scored else None,
        "sets": [entry for entry in entries if entry],
        "not_measured": not_measured,
        "suites": suites,
    }


def _not_measured(wanted: Wanted, gathered: Sequence[Gathered]) -> dict[str, str]:
    """Why, by the set's name; nothing on other processes than the first. Raises RmcliError where nothing is left."""
    if not world.is_first():
        return {}
    told = {name_of(source): why_nothing(one, source) for source, one in zip(wanted.sets, gathered, strict=True)}
    found = {name: why for name, why in told.items() if why is not None}
    if len(found) == len(wanted.sets) and not wanted.suites:
        check_measured(found.values())
    return found


def _entry(scorer: Scorer, source: SourceSection, wanted: Wanted, gathered: Gathered) -> dict[str, Any]:
    """What metrics.json says of a set; empty without comparisons, as on other processes than the first."""
    bias = format_bias(scorer, gathered.sample.held)
    if not gathered.keys:
        return {}
    judged = gathered.judged()
    of_length = gathered.of_length(judged)
    return {
        "name": name_of(source),
        "input": source.path,
        "map_fn": wanted.map_fn_of(source),
        "lines": gathered.lines,
        "errors": dict(gathered.errors),
        "truncated": gathered.truncated,
        "noted": dict(gathered.noted),
        "figures": figures(judged, of_length),
        "by": by(judged, of_length, gathered.values),
        "against": None,
        "format_bias": bias,
        "worst": gathered.worst.texts(scorer.encoder.reward.tokenizer),
    }


def _compare(
    against: Config,
    wanted: Wanted,
    gathered: Sequence[Gathered],
    entries: list[dict[str, Any]],
    suites: list[dict[str, Any]],
) -> None:
    """Score all sets and suites again with the other model. Both models are never held at once."""
    gc.collect()  # networks refer to themselves
    output.say(f"the same with {against.model.pretrained_model_name_or_path}")
    numbers_alone = replace(wanted, edited=0, worst=0, by=())
    encoder = load_encoder(against)
    opened = [open_set(against, encoder, source, numbers_alone) for source in wanted.sets]
    other = load_scorer(against, encoder)
    for one, ours, entry in zip(opened, gathered, entries, strict=True):
        theirs = gather(other, one, numbers_alone)
        if entry:
            entry["against"] = compared(ours, theirs)
    for (suite, source), entry in zip(wanted.suites, suites, strict=True):
        theirs = evaluate_suite(against, encoder, other, suite, source)
        entry["against"] = {name: theirs[name] for name in ("headline", "figures")}


def _of_model(role: str, config: Config | None, is_verified: bool) -> dict[str, str | None]:
    if config is None:
        return {role: None, f"{role}_sha256": None}
    folder = Path(str(config.model.pretrained_model_name_or_path))
    return {role: str(folder), f"{role}_sha256": hashes.of_folder(folder, is_verified)}
