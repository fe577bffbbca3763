"""Whether data, tokenizer, loss and configuration go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmcli.config.layers import Resolved
from rmcli.config.sections import Config
from rmcli.errors import ConfigError, RmcliError
from rmcli.model.batch import comparisons_of, trains_as_list
from rmcli.model.device import is_reduced
from rmcli.packs.reader import PackedSplit


def check_master_weights(config: Config, device: torch.device, processes: int) -> None:
    """Split masters are bfloat16 weights of one process: raise ConfigError where the arithmetic is float32."""
    if config.train.master_weights == "split" and processes > 1:
        raise ConfigError(
            f"train.master_weights = 'split' on {processes} processes: FSDP2 keeps one kind of weight, and would "
            "lose the float32 sums of bfloat16 gradients",
            "set train.master_weights=float32: sharded, it computes the same in bfloat16 and takes less on each",
        )
    if config.train.master_weights == "split" and not is_reduced(config.model.dtype, device):
        raise ConfigError(
            f"train.master_weights = 'split' trains bfloat16 weights, but model.dtype = {config.model.dtype!r} is "
            f"float32 arithmetic on {device.type}",
            "set model.dtype=bfloat16, or train.master_weights=float32",
        )


def check_frozen(config: Config, processes: int) -> None:
    """What is frozen needs adapters beside it that train. Raises ConfigError for what does not go together."""
    if config.model.quantization == "nf4" and config.lora.r is None:
        raise ConfigError(
            "model.quantization = 'nf4' without adapters: weights of 4 bits cannot be trained",
            "set lora.r (64, say), or model.quantization=none",
        )
    if config.model.quantization == "nf4" and processes > 1:
        raise ConfigError(
            f"model.quantization = 'nf4' on {processes} processes: weights of 4 bits are not cut over them",
            "train on one, or with model.quantization=none and lora.r",
        )
    if config.lora.r is not None and config.train.master_weights == "split":
        raise ConfigError(
            "train.master_weights = 'split' with lora.r: adapters are float32, and what is frozen has no masters",
            "leave train.master_weights out",
        )


@dataclass(frozen=True)
class Use:
    """How the training groups meet the loss: as whole lists, pairwise or left out; and their comparisons."""

    lists: int
    pairwise: int
    left_out: int
    comparisons_left_out: int
    margins: int
    is_used_G: np.ndarray = field(repr=False)  # (groups of the split,) whether it is not left out


def count_use(split: PackedSplit, loss_type: str) -> Use:
    """Read all comparisons once. Raises ConfigError when the loss can learn from none of them."""
    lists = pairwise = left_out = comparisons_left_out = margins = 0
    is_used = []
    for row in range(len(split)):
        for group in split.groups(row):
            used = comparisons_of(group, loss_type)
            as_list = trains_as_list(group, loss_type)
            is_used.append(bool(used))
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
    return Use(lists, pairwise, left_out, comparisons_left_out, margins, np.array(is_used))


NOT_OF_THE_DATA = ("num_proc", "shard")  # settings of [data] that one set may be prepared with in several ways


def adopt_data_settings(resolved: Resolved, manifest: Mapping[str, Any], folder: Path) -> Resolved:
    """The configuration with [data] as it was when the data was prepared.

    Raises ConfigError when the user asks for another value: that takes another prepare. What changes nothing in the
    data is no part of its manifest and stays as the user has it.
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
    for key in wanted.keys() - prepared.keys() - set(NOT_OF_THE_DATA):
        default = type(resolved.config.data).model_fields[key].default
        if wanted[key] != default and f"data.{key}" in resolved.explicit:
            raise ConfigError(
                f"data.{key} = {wanted[key]!r} ({origins[f'data.{key}']}), but {folder} was prepared before there "
                "was such a setting",
                "prepare the data again with this setting, or leave it out",
            )
        origins[f"data.{key}"] = "default"
    data = resolved.config.data.model_validate({**prepared, **{key: wanted[key] for key in NOT_OF_THE_DATA}})
    return replace(resolved, config=resolved.config.model_copy(update={"data": data}), origins=origins)
