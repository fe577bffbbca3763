"""What a training run is about, decided and checked before a weight is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rmcli import output
from rmcli.backbones.architectures import RowChoice, choose_rows
from rmcli.config.layers import Config, Resolved, SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import flops, model_folder
from rmcli.model import forward as model
from rmcli.model.batch import comparisons_of, trains_as_list
from rmcli.model.kernels import check_kernels
from rmcli.packs import writer as store
from rmcli.records import Rows
from rmcli.tokens.tokenizer import CHAT_TEMPLATE_HINT, RewardTokenizer, load_model_config, load_tokenizer
from rmcli.train.plan import RowSizes, num_steps, plan

GIB = 2**30


@dataclass(frozen=True)
class Job:
    """Everything decided before a weight is loaded."""

    resolved: Resolved
    data_folder: Path
    run_folder: Path
    manifest: Mapping[str, Any]
    reward: RewardTokenizer
    train_split: store.PackedSplit
    eval_split: store.PackedSplit
    sizes: RowSizes
    total_steps: int
    memory: model.MemoryEstimate
    row_choice: RowChoice
    use: "Use"
    device: torch.device

    @property
    def config(self) -> Config:
        return self.resolved.config

    @property
    def peak_flops(self) -> float | None:
        """bf16 FLOP/s of the device, for MFU; None where it is not known (a CPU, say)."""
        if self.config.train.peak_tflops is not None:
            return self.config.train.peak_tflops * 1e12
        return flops.peak_flops(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None

    @property
    def plans_packs(self) -> bool:
        """Whether forwards are planned as packs; single conversations are, each pack one after the other."""
        return self.row_choice.rows != "padded"


def build_job(resolved: Resolved, data_folder: Path, run_folder: Path | None) -> Job:
    """Read the data and check it against the configuration; load no weights and write nothing."""
    if (processes := PartialState().num_processes) > 1:
        raise ConfigError(f"training on {processes} processes is not built yet", "start one process")
    manifest = store.read_manifest(data_folder)
    resolved = adopt_data_settings(resolved, manifest, data_folder)
    config = resolved.config
    device = model.pick_device(config)
    check_master_weights(config, device)
    model_config = load_model_config(config.model)
    row_choice = choose_rows(config.model.use_varlen_attn, model_config, config.data.max_length)
    model.check_attention(config, model_config, row_choice.rows, device)
    check_kernels(config.train.kernels, row_choice.rows, config.model.attention, device)
    if config.train.kernels == "compile":
        model.check_compilable(config, model_config)
    reward = load_tokenizer(config.model)
    if reward.tokenizer.chat_template is None:
        raise ConfigError(
            f"the tokenizer of {config.model.pretrained_model_name_or_path} has no chat template", CHAT_TEMPLATE_HINT
        )
    check_same_tokens(manifest, reward, data_folder)
    train_split = store.PackedSplit(data_folder, "train")
    if not len(train_split):
        raise RmcliError(f"{data_folder} has no training pairs", "lower data.eval_fraction, or prepare more rows")
    sizes = RowSizes([train_split.group_tokens(row) for row in range(len(train_split))])
    model_folder.exported_template(reward)  # what could not be exported is not trained
    if run_folder is None:
        run_folder = next_run_folder(Path("runs"), resolved.name)
    return Job(
        resolved=resolved,
        data_folder=data_folder,
        run_folder=run_folder,
        manifest=manifest,
        reward=reward,
        train_split=train_split,
        eval_split=store.PackedSplit(data_folder, "eval"),
        sizes=sizes,
        total_steps=num_steps(sizes, config.train, row_choice.rows != "padded"),
        memory=model.estimate_memory(
            config,
            model_config,
            _largest_forward(config, sizes, row_choice.rows),
            config.train.master_weights == "split" and _has_several_forwards(config, sizes, row_choice.rows),
        ),
        row_choice=row_choice,
        use=count_use(train_split, config.loss.loss_type),
        device=device,
    )


def check_master_weights(config: Config, device: torch.device) -> None:
    """Split masters are bfloat16 weights: raise ConfigError where the arithmetic is float32."""
    if config.train.master_weights == "split" and not model.is_reduced(config.model.dtype, device):
        raise ConfigError(
            f"train.master_weights = 'split' trains bfloat16 weights, but model.dtype = {config.model.dtype!r} is "
            f"float32 arithmetic on {device.type}",
            "set model.dtype=bfloat16, or train.master_weights=float32",
        )


@dataclass(frozen=True)
class Use:
    """How the training groups meet the loss: as whole lists, pairwise or left out; and their comparisons."""

    lists: int
    pairwise: int
    left_out: int
    comparisons_left_out: int
    margins: int


def count_use(split: store.PackedSplit, loss_type: str) -> Use:
    """Read all comparisons once. Raises ConfigError when the loss can learn from none of them."""
    lists = pairwise = left_out = comparisons_left_out = margins = 0
    for row in range(len(split)):
        for group in split.groups(row):
            used = comparisons_of(group, loss_type)
            as_list = trains_as_list(group, loss_type)
            lists += as_list
            pairwise += bool(used) and not as_list
            left_out += not used
            comparisons_left_out += (len(group.comparisons) - len(used)) if used else 0
            margins += sum(comparison.margin != 0 for comparison in used)
    if not lists + pairwise:
        raise ConfigError(
            f"loss.loss_type = {loss_type} can learn from none of the {left_out} groups: they hold ties or soft "
            "labels only",
            "try -s loss.loss_type=ties or ranking",
        )
    return Use(lists, pairwise, left_out, comparisons_left_out, margins)


@dataclass(frozen=True)
class Elsewhere:
    """The one source that has been prepared, but for other presets, and how it was read."""

    sources: tuple[SourceSection, ...]
    dataset_map_fn: str | None
    split: str
    eval_fraction: float
    eval_seed: int
    keep_duplicates: bool
    decontaminate: tuple[str, ...]

    @staticmethod
    def from_manifest(manifest: Mapping[str, Any]) -> "Elsewhere":
        data = manifest["config"]["data"]
        return Elsewhere(
            tuple(SourceSection.model_validate(source) for source in manifest["sources"]),
            manifest["dataset_map_fn"],
            data["split"],
            data["eval_fraction"],
            data["eval_seed"],
            data["keep_duplicates"],
            tuple(data.get("decontaminate", ())),
        )


def find_data(resolved: Resolved, root: Path) -> Path | Elsewhere:
    """The set under `root` prepared for this preset, or the only source prepared for others.

    Raises ConfigError when several are prepared for it, RmcliError with the command to run when there is no choice.
    """
    manifests: dict[Path, dict[str, Any]] = {}
    for folder in store.find_prepared(root):
        try:
            manifests[folder] = store.read_manifest(folder)
        except RmcliError as error:
            output.warn(f"{folder} is left out: {error.message}")
    own = [folder for folder, manifest in manifests.items() if manifest["preset"] == resolved.name]
    if len(own) == 1:
        return own[0]
    if own:
        raise ConfigError(
            f"several sets are prepared for {resolved.name}: {', '.join(map(str, own))}", "choose one with --data"
        )
    others = {Elsewhere.from_manifest(manifest) for manifest in manifests.values()}
    if len(others) == 1:
        return others.pop()
    found = f"{len(others)} sources are prepared for other presets" if others else f"nothing is prepared in {root}/"
    map_fn = resolved.config.data.dataset_map_fn or "F"
    raise RmcliError(
        f"no data for preset {resolved.name}: {found}",
        f"run: rmcli prepare --map-fn {map_fn} --preset {resolved.name}",
    )


def next_run_folder(root: Path, name: str) -> Path:
    """`root/name-N` with the first N that is not taken."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def adopt_data_settings(resolved: Resolved, manifest: Mapping[str, Any], folder: Path) -> Resolved:
    """The configuration with [data] as it was when the data was prepared.

    Raises ConfigError when the user asks for another value: that takes another prepare.
    """
    prepared: dict[str, Any] = manifest["config"]["data"]
    wanted = resolved.config.data.model_dump()
    origins = dict(resolved.origins)
    for key, value in prepared.items():
        origin = origins.get(f"data.{key}", "default")
        if key not in wanted:
            raise RmcliError(
                f"{folder} was prepared with data.{key}, which this rmcli does not know", "prepare it again"
            )
        if wanted[key] != value and f"data.{key}" in resolved.explicit:
            raise ConfigError(
                f"data.{key} = {wanted[key]!r} ({origin}), but {folder} was prepared with {value!r}",
                "prepare the data again with this setting, or leave it out",
            )
        origins[f"data.{key}"] = f"prepared in {folder}"
    data = resolved.config.data.model_validate(prepared)
    return replace(resolved, config=resolved.config.model_copy(update={"data": data}), origins=origins)


def check_same_tokens(manifest: Mapping[str, Any], reward: RewardTokenizer, folder: Path) -> None:
    """Refuse data whose ids mean something else to this model. Raises RmcliError with both sides."""
    again = "prepare the data for this model: rmcli prepare ... -o DIR"
    for name, value in reward.fingerprint().items():
        if manifest[name] != value:
            what = name.removesuffix("_sha256").replace("_", " ")
            raise RmcliError(
                f"{folder} was prepared with another {what}: {manifest[name][:16]} there, {value[:16]} here", again
            )
    there = (manifest["reward_token"], manifest["reward_token_id"], manifest["reward_mode"])
    here = (reward.reward_token, reward.reward_token_id, reward.mode)
    if there != here:
        raise RmcliError(
            f"{folder} was prepared with reward token {there[0]} ({there[1]}, {there[2]}), "
            f"not {here[0]} ({here[1]}, {here[2]})",
            again,
        )


def _largest_forward(config: Config, sizes: RowSizes, rows: Rows) -> int:
    """Tokens of the largest forward of the run, an upper bound: without sharing a pair's prompt runs twice."""
    train = config.train
    if rows == "padded":
        return train.batch_size * 2 * config.data.max_length
    times = 2 if rows == "single" else 1
    if train.pairs_per_step is not None:
        largest = sorted((int(n) for tokens in sizes.group_tokens for n in tokens), reverse=True)
        return times * min(config.data.max_packed_length, sum(largest[: train.pairs_per_step]))
    packs = sorted((int(tokens.sum()) for tokens in sizes.group_tokens), reverse=True)
    return times * sum(packs[: train.batch_size])


def _has_several_forwards(config: Config, sizes: RowSizes, rows: Rows) -> bool:
    """Whether some step adds up the gradients of more than one forward."""
    one_epoch = config.train.model_copy(update={"max_epochs": 1})
    steps = plan(sizes, one_epoch, rows != "padded", config.data.max_packed_length)
    return rows == "single" or any(len(step.forwards[0]) > 1 for step in steps)


def describe(job: Job) -> dict[str, Any]:
    """The plan in numbers, for --dry-run and the first lines of a run."""
    one_epoch = job.config.train.model_copy(update={"max_epochs": 1, "max_steps": None})
    steps_per_epoch = num_steps(job.sizes, one_epoch, job.plans_packs)
    return {
        "data": str(job.data_folder),
        "run": str(job.run_folder),
        "device": str(job.device),
        "rows": job.row_choice.rows,
        "packs": len(job.train_split),
        "pairs": job.sizes.num_groups,
        "eval_pairs": sum(job.eval_split.groups_per_row),
        "epochs": job.config.train.max_epochs,
        "steps": job.total_steps,
        "pairs_per_step": job.config.train.pairs_per_step or round(job.sizes.num_groups / steps_per_epoch, 1),
        "parameters": job.memory.num_parameters,
        "memory_need_gib": round(job.memory.total / GIB, 2),
        "memory_have_gib": round(model.free_memory(job.device) / GIB, 2),
    }


def check_memory(job: Job) -> None:
    """Stop before loading what cannot fit. Raises RmcliError with need, have and what would help."""
    have = model.free_memory(job.device)
    if not job.config.train.check_memory or job.memory.total <= have:
        return
    need, states = job.memory.total / GIB, job.memory.states / GIB
    helps = (
        "fewer tokens per forward (data.max_packed_length) or train.activation_checkpointing=full"
        if job.memory.states < have
        else _what_needs_less(job, have)
    )
    raise RmcliError(
        f"not enough memory on {job.device}: need about {need:.1f} GiB ({states:.1f} for weights, gradients and "
        f"AdamW), have {have / GIB:.1f} GiB",
        f"what would fit: {helps}; train.check_memory=false tries anyway",
    )


def _what_needs_less(job: Job, have: int) -> str:
    """Where weights, gradients and optimizer alone do not fit: the first way to hold them that does, or none."""
    train = job.config.train
    several = _has_several_forwards(job.config, job.sizes, job.row_choice.rows)
    reduced = model.is_reduced(job.config.model.dtype, job.device)
    ways = [{"master_weights": "split"}] if reduced else []
    ways.append({"optimizer": "adamw_8bit"})
    ways += [ways[0] | ways[-1]] if reduced else []
    for way in ways:
        smaller = train.model_copy(update=way)
        bytes_each = model.bytes_per_parameter(smaller, reduced, several)
        needed = job.memory.num_parameters * bytes_each
        if smaller != train and needed < min(have, job.memory.states):
            keys = " with ".join(f"train.{key}={value}" for key, value in way.items())
            return f"{keys} ({needed / GIB:.1f} GiB, {bytes_each} bytes per parameter)"
    return "a smaller backbone: weights, gradients and optimizer alone do not fit"
