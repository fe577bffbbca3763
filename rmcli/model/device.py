"""Where a network runs, and in which precision it computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from rmcli.config.sections import Config
from rmcli.errors import ConfigError


def is_reduced(dtype: str, device: torch.device) -> bool:
    """Whether `model.dtype` means bfloat16 arithmetic on this device."""
    return dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")


def arithmetic(network: PreTrainedModel, dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """The precision the backbone computes in: float32 weights are cast; split ones are bfloat16 and need no cast."""
    if network.dtype == torch.bfloat16 or not is_reduced(dtype, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def pick_device(config: Config) -> torch.device:
    """`train.device`; raises ConfigError when cuda is asked for and not there."""
    return find_device(config.train.device, "train.device")


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
