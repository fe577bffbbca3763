"""What a training run is about, decided and checked before a weight is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from rmcli import output
from rmcli.backbones.architectures import BatchChoice, choose_batches
from rmcli.backbones.context import check_max_length
from rmcli.config.layers import Resolved
from rmcli.config.no_effect import in_vain, without_effect
from rmcli.config.sections import Config, ModelSection
from rmcli.config.sections_of_evaluation import split_key
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import flops
from rmcli.model.backend import check_attention
from rmcli.model.device import pick_device
from rmcli.model.fp8 import check_fp8
from rmcli.model.kernels import check_compilable, check_kernels
from rmcli.model.memory import MemoryEstimate, estimate, free_memory, sizes_of
from rmcli.model.sequence_parallel import check_sequence_parallel
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.same_tokens import check_same_tokens
from rmcli.records import BatchKind
from rmcli.runs import backbone
from rmcli.runs.folder import next_run_folder
from rmcli.ship.same_ids import ids_sha256
from rmcli.ship.template import exported_template
from rmcli.tokens.tokenizer import CHAT_TEMPLATE_HINT, RewardTokenizer, load_model_config, load_tokenizer
from rmcli.train.best import is_over
from rmcli.train.checks import (
    Use,
    adopt_data_settings,
    check_frozen,
    check_master_weights,
    count_use,
)
from rmcli.train.eval_sets import EvalSet, held_out_of, open_sets
from rmcli.train.past import Past, check_length, check_processes, check_same_run, check_same_sets
from rmcli.train.pieces import PackSizes
from rmcli.train.plan import has_several_forwards, largest_forward, num_steps
from rmcli.train.spread import Spread, check_sizes, spread_over

GIB = 2**30


@dataclass(frozen=True)
class Job:
    """Everything decided before a weight is loaded."""

    resolved: Resolved
    data_folder: Path
    run_folder: Path
    run_folder_is_named: bool  # else it is the next free name, claimed when the run begins
    manifest: Mapping[str, Any]
    reward: RewardTokenizer
    train_split: PackedSplit
    eval_sets: tuple[EvalSet, ...]  # what it is evaluated on: the pairs held out, then those with names
    sizes: PackSizes
    total_steps: int
    memory: MemoryEstimate
    batch_choice: BatchChoice
    use: Use
    device: torch.device
    spread: Spread
    past: Past | None = None  # the checkpoint that the run goes on from
    goes_on: bool = False  # in a folder that an earlier start made, from its checkpoint where it has one

    @property
    def config(self) -> Config:
        return self.resolved.config

    @property
    def has_adapters(self) -> bool:
        """Whether adapters train, and the backbone is frozen."""
        return self.config.lora.r is not None

    @property
    def is_done(self) -> bool:
        """Whether all its steps are behind it, or it has stopped early for good."""
        return self.past is not None and (self.past.step >= self.total_steps or is_over(self.config, self.past.facts))

    @property
    def held_out(self) -> EvalSet:
        """Of the training data; it may have no pairs."""
        return self.eval_sets[0]

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of the device, for MFU: in bf16, or with train.fp8 in 8 bits; None where it is not known (a CPU)."""
        if self.config.train.peak_tflops is not None:
            return self.config.train.peak_tflops * 1e12
        if self.device.type != "cuda":
            return None
        return flops.peak_flops(torch.cuda.get_device_name(self.device), self.config.train.fp8 != "none")


def build_job(
    resolved: Resolved,
    data_folder: Path,
    run_folder: Path | None,
    past: Past | None = None,
    goes_on: bool = False,
    processes: int = 1,
) -> Job:
    """Read the data and check it against the configuration and a past; load no weights and write nothing.

    `processes` train together.
    """
    manifest = read_manifest(data_folder)
    resolved = adopt_data_settings(resolved, manifest, data_folder)
    for said in without_effect(resolved, "model", "lora", "loss", "train"):
        output.warn(said)
    config = resolved.config
    device = pick_device(config)
    model = _where_it_lies(config.model, run_folder, past)
    model_config, batch_choice = _checked_model(config, model, device, processes)
    reward = _checked_tokenizer(config, model, manifest, data_folder)
    train_split = _train_split(data_folder)
    network = sizes_of(config, model_config, batch_choice.kind, reward)
    use = count_use(train_split, config.loss.loss_type)
    sizes = PackSizes.of(train_split, network.counter, use.is_used_G)
    exported_template(reward)  # what could not be exported is not trained
    ranks = processes // config.parallel.sequence_parallel_size
    total_steps = num_steps(sizes, config.train, batch_choice.kind, ranks)
    held_out = held_out_of(data_folder, manifest, config.loss.loss_type)
    eval_sets = (held_out, *open_sets(config, reward, run_folder if goes_on else None))
    _check_best(config, held_out)
    _say_in_vain(resolved, sizes, batch_choice.kind, ranks, total_steps, eval_sets)
    tokens = -(-largest_forward(config, sizes, batch_choice.kind, ranks) // config.parallel.sequence_parallel_size)
    several_forwards = has_several_forwards(config, sizes, batch_choice.kind, ranks)
    spread = spread_over(
        processes,
        config.parallel,
        lambda mesh: estimate(network, config, tokens, several_forwards, mesh).total,
        free_memory(device, processes),
    )
    if past is not None:
        check_same_run(past, resolved, manifest, reward)
        check_same_sets(past, eval_sets)
        check_processes(past, config.train, spread)
        check_length(past, total_steps, config.train)
    return Job(
        resolved=resolved,
        data_folder=data_folder,
        run_folder=run_folder or next_run_folder(Path("runs"), resolved.name),
        run_folder_is_named=run_folder is not None,
        manifest=manifest,
        reward=reward,
        train_split=train_split,
        eval_sets=eval_sets,
        sizes=sizes,
        total_steps=total_steps,
        memory=estimate(network, config, tokens, several_forwards, spread.mesh),
        batch_choice=batch_choice,
        use=use,
        device=device,
        spread=spread,
        past=past,
        goes_on=goes_on,
    )


def _checked_model(
    config: Config, model: ModelSection, device: torch.device, processes: int
) -> tuple[PreTrainedConfig, BatchChoice]:
    """Its config, and how conversations run. Raises ConfigError for what cannot run so, before weights are read."""
    check_master_weights(config, device, processes)
    check_frozen(config, processes)
    check_sizes(config.parallel, processes)
    model_config = load_model_config(model)
    check_max_length(model_config, config.data.max_length, config.model.pretrained_model_name_or_path)
    choice = choose_batches(config.model.use_varlen_attn, model_config, config.data.max_length)
    check_attention(config, model_config, choice.kind, device)
    check_sequence_parallel(config, model_config, choice)
    check_kernels(config.train.kernels, choice.kind, config.model.attention, device)
    if config.train.kernels == "compile":
        check_compilable(config, model_config)
    check_fp8(config, device, processes)
    return model_config, choice


def _checked_tokenizer(
    config: Config, model: ModelSection, manifest: Mapping[str, Any], data_folder: Path
) -> RewardTokenizer:
    """Raises ConfigError where it renders nothing, or is another than the data's."""
    reward = load_tokenizer(model)
    if reward.tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {config.model.pretrained_model_name_or_path} has no chat template", CHAT_TEMPLATE_HINT
        )
    check_same_tokens(manifest, reward, data_folder, ids=ids_sha256(reward))
    return reward


def _train_split(data_folder: Path) -> PackedSplit:
    split = PackedSplit(data_folder, "train")
    if not len(split):
        raise RmcliError(f"{data_folder} has no training pairs", "lower data.eval_fraction, or prepare more rows")
    return split


def _say_in_vain(
    resolved: Resolved, sizes: PackSizes, kind: BatchKind, ranks: int, total: int, eval_sets: Sequence[EvalSet]
) -> None:
    """Settings that were asked for and change nothing with this data."""
    train = resolved.config.train
    uncapped = train.model_copy(update={"max_steps": None})
    most = num_steps(sizes, uncapped, kind, ranks)
    for said in in_vain(resolved, _without_effect_here(resolved.config, most, total, eval_sets)):
        output.warn(said)


def with_spread(job: Job, spread: Spread) -> Job:
    """The job with its weights laid otherwise on the processes, and what one of them then needs."""
    old = job.memory
    memory = estimate(old.sizes, job.config, old.tokens, old.several_forwards, spread.mesh)
    return replace(job, spread=spread, memory=memory)


def _where_it_lies(model: ModelSection, run_folder: Path | None, past: Past | None) -> ModelSection:
    """What to load config and tokenizer from: a run that goes on keeps its own, and asks no hub."""
    return model if past is None or run_folder is None else backbone.section(run_folder, model)


def _check_best(config: Config, held_out: EvalSet) -> None:
    """Raise ConfigError where train.best is a figure of pairs held out, of which there are none."""
    best = config.train.best
    if best is not None and split_key(best, config.eval.names)[0] is None and not held_out.num_used:
        raise ConfigError(
            f"train.best = {best!r}, but {held_out.folder} has no pairs held out",
            "prepare with data.eval_fraction above 0, or leave train.best out",
        )


def _without_effect_here(
    config: Config, most_steps: int, total_steps: int, eval_sets: Sequence[EvalSet]
) -> dict[str, str | None]:
    """Settings that change nothing with this data: key -> why, None where it does."""
    train = config.train
    never = "no pair is held out that this loss can be told on (data.eval_fraction)"
    only_at_end = f"the run has {total_steps:,} steps, and is evaluated at its end in any case"
    patience, every = train.early_stopping_patience or 0, train.eval_steps or 0
    return {
        "train.max_steps": (
            f"train.max_epochs = {train.max_epochs} gives {most_steps:,} steps"
            if (train.max_steps or 0) > most_steps
            else None
        ),
        "train.eval_steps": (
            never if not any(one.num_used for one in eval_sets) else only_at_end if every >= total_steps else None
        ),
        "train.early_stopping_patience": (
            f"the run has {total_steps:,} steps, and cannot stop before step {(patience + 1) * every:,}"
            if (patience + 1) * every >= total_steps
            else None
        ),
    }
