"""What a run that goes on knows of its past: a checkpoint's facts, and whether this run may follow them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmcli import output
from rmcli.config.layers import Resolved
from rmcli.config.sections import Config, TrainSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import optim
from rmcli.parallel import world
from rmcli.runs import record
from rmcli.tokens.tokenizer import RewardTokenizer
from rmcli.train.eval_sets import EvalSet
from rmcli.train.spread import Spread

# What may be another than before and changes no bit of the run, and what changes only how sums are rounded.
FREE = (
    "data.num_proc",
    "eval.sets",
    "train.async_checkpoint",
    "train.check_memory",
    "train.early_stopping_patience",
    "train.early_stopping_threshold",
    "train.eval_steps",
    "train.log_every",
    "train.max_skipped",
    "train.nonfinite",
    "train.peak_tflops",
    "train.save_minutes",
    "train.save_steps",
    "train.save_total_limit",
    "train.trackers",
)
ROUNDING = (
    "model.attention",
    "model.trim_last_layer",
    "parallel.data_parallel",
    "parallel.dp_replicate_size",
    "parallel.sequence_parallel_size",
    "train.activation_checkpointing",
    "train.deterministic",
    "train.device",
    "train.kernels",
)
LONGER = ("train.max_epochs", "train.max_steps")
INEXACT = "the run goes on, not bitwise as without the stop"


@dataclass(frozen=True)
class Past:
    """A checkpoint that a run goes on from. `facts` are those of its checkpoint.json."""

    checkpoint: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        return self.facts["step"]


def identity(manifest: Mapping[str, Any], reward: RewardTokenizer) -> dict[str, Any]:
    """What a checkpoint belongs to besides its configuration."""
    return {
        "manifest_sha256": manifest["manifest_sha256"],
        **reward.fingerprint(),
        "reward_token": reward.reward_token,
        "reward_token_id": reward.reward_token_id,
        "reward_mode": reward.mode,
    }


def check_same_run(past: Past, resolved: Resolved, manifest: Mapping[str, Any], reward: RewardTokenizer) -> None:
    """Refuse data, tokenizer or settings that would make it another run, with both values; say what is not exact.

    Raises ConfigError.
    """
    for name, value in identity(manifest, reward).items():
        if past.facts["identity"].get(name) != value:
            raise ConfigError(
                f"{name} is {value}, but {past.checkpoint} was trained with {past.facts['identity'].get(name)}",
                "go on with the same data and tokenizer, or start a new run with another -o",
            )
    allowed = (*FREE, *ROUNDING, *LONGER)
    changed = changes(past.facts["config"], resolved.config)
    for key, (before, now) in changed.items():
        if key not in allowed:
            raise ConfigError(
                f"{key} = {now!r} ({resolved.origins.get(key, 'default')}), but {past.checkpoint} was trained with "
                f"{before!r}",
                "leave it out to go on with the run, or start a new one with another -o",
            )
    inexact = [key for key in changed if key in ROUNDING]
    if inexact:
        told = ", ".join(f"{key} = {changed[key][1]!r} instead of {changed[key][0]!r}" for key in inexact)
        output.warn(f"{told}: {INEXACT}")
    _say_other_versions(past)


def check_same_sets(past: Past, sets: Sequence[EvalSet]) -> None:
    """Sets to evaluate on may come and go; one name is one set all along a run. Raises ConfigError."""
    known = past.facts.get("eval_sets", {})
    for one in sets:
        if one.name in known and known[one.name] != one.identity:
            raise ConfigError(
                f"eval set {one.name} is {one.identity}, but {past.checkpoint} was evaluated on {known[one.name]}",
                "give the new set another name: figures of one name are of one set",
            )


def identities(sets: Sequence[EvalSet], past: Past | None) -> dict[str, str]:
    """By name what each set is or, of an earlier start, was."""
    before = {} if past is None else past.facts.get("eval_sets", {})
    return {**before, **{one.name: one.identity for one in sets if one.name is not None}}


def changes(before: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both; a key that one side does not know has its default there."""
    found = {}
    for section, values in config.model_dump().items():
        fields = type(getattr(config, section)).model_fields
        old = before.get(section, {})
        for key, value in values.items():
            then = old.get(key, fields[key].default)
            if then != value:
                found[f"{section}.{key}"] = (then, value)
    return found


def check_length(past: Past, total_steps: int, train: Any) -> None:
    """A run may become longer: the schedule follows the new total from here on, said with both rates.

    Raises ConfigError where it would be shorter.
    """
    before = past.facts["total_steps"]
    if total_steps < before:
        raise ConfigError(
            f"{total_steps} steps in all, but the run was to have {before} and has {past.step} behind it",
            "a run can become longer, not shorter: leave max_steps and max_epochs as they were",
        )
    if total_steps > before:
        following = past.step + 1
        shares = (
            optim.schedule(min(following, total), total, train.warmup_ratio, train.min_lr_ratio)
            for total in (before, total_steps)
        )
        rates = [f"{train.lr * share:.3e}" for share in shares]
        output.warn(
            f"{total_steps} steps instead of {before}: from step {following} on the learning rate follows the longer "
            f"schedule ({rates[1]} there, not {rates[0]}); not bitwise a run of {total_steps} steps from the start"
        )


def check_processes(past: Past, train: TrainSection, spread: Spread) -> None:
    """Other processes may go on with a run whose steps do not depend on them, said. Raises ConfigError else."""
    before = past.facts.get("ranks", 1)
    if spread.ranks != before and train.pairs_per_step is None:
        raise ConfigError(
            f"{spread.ranks} data-parallel processes, but {past.checkpoint} was trained on {before}: a step is "
            "train.batch_size x train.accumulative_counts packs on each, so that it would be other pairs",
            f"go on with {before}, or start a run with train.pairs_per_step, whose steps hold the same on any number",
        )
    number = past.facts["machine"].get("processes", 1)
    if number != spread.processes:
        output.warn(f"number of processes {spread.processes} (was {number}): {INEXACT}")


def machine(device: torch.device) -> dict[str, Any]:
    """On what bits depend besides the configuration."""
    return {
        "versions": record.versions(),
        "device": str(device.type),
        "threads": torch.get_num_threads(),
        "processes": world.size(),
    }


def _say_other_versions(past: Past) -> None:
    told = []
    there, here = past.facts["machine"]["versions"], record.versions()
    told += [f"{name} {here[name]} (was {there.get(name)})" for name in here if here[name] != there.get(name)]
    threads = past.facts["machine"]["threads"]
    if threads != torch.get_num_threads():
        told.append(f"{torch.get_num_threads()} threads (was {threads})")
    if told:
        output.warn(f"{', '.join(told)}: {INEXACT}")


def data_of(run_folder: Path) -> Path:
    """The prepared data that the run was started on. Raises RmcliError where it is gone."""
    told = record.read(run_folder)
    folder = Path(told["data"]["folder"]) if told is not None and "data" in told else None
    if folder is None or not folder.is_dir():
        raise RmcliError(
            f"the data of {run_folder} is not there any more: {folder}", "give the place it has now: --data DIR"
        )
    return folder
