"""Where a network runs, and in which precision it computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from rmcli.config.sections import Config
from rmcli.errors import ConfigError
from rmcli.model.adapter import settings_of
from rmcli.parallel import world


def is_reduced(dtype: str, device: torch.device) -> bool:
    """Whether `model.dtype` means bfloat16 arithmetic on this device."""
    return dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")


def arithmetic(network: PreTrainedModel, dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """The precision the backbone computes in: float32 weights are cast; split ones are bfloat16 and need no cast.

    Beside adapters, which are float32, what is frozen may be bfloat16.
    """
    is_split = network.dtype == torch.bfloat16 and settings_of(network) is None
    if is_split or not is_reduced(dtype, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def pick_device(config: Config) -> torch.device:
    """`train.device`, of several processes each its own GPU. Raises ConfigError where there is no CUDA."""
    device = find_device(config.train.device, "train.device")
    return _own_gpu() if device.type == "cuda" and world.size() > 1 else device


def _own_gpu() -> torch.device:
    """By its number: to a thread that has just begun "cuda" is the first one."""
    number, there = world.local_rank(), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"process {number} of this machine has no GPU: torch sees {there}, numbered from 0",
            "start one process per GPU, or train on the CPU: -s train.device=cpu",
        )
    return torch.device("cuda", number)


def find_device(wanted: str, key: str) -> torch.device:
    """The device that `key` asks for: auto, cpu, cuda or cuda:N. Raises ConfigError when it is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} = {wanted!r} is no device", "auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key} = {wanted!r}, but torch sees no CUDA device", f"set {key}=cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"{key} = {wanted!r}, but torch sees {torch.cuda.device_count()} CUDA devices")
    return device
