"""Sequence parallel: several processes share each packed row, every one runs its own tokens of it.

All processes of the group are given the same batch and get all scores. Each divides its loss by the group's size;
gradients of weights are summed over all processes (see parallel/adjoints).
"""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from rmcli.backbones.architectures import BatchChoice
from rmcli.config.sections import Config
from rmcli.errors import ConfigError
from rmcli.parallel.sequence import SequenceGroup


def set_sequence_group(network: Any, group: SequenceGroup | None) -> None:
    """Let packed rows be shared by this group; a network never told, or told None, runs whole rows."""
    network.sequence_group = group


def sequence_group(network: Any) -> SequenceGroup | None:
    return getattr(network, "sequence_group", None)


def check_sequence_parallel(config: Config, model_config: PreTrainedConfig, choice: BatchChoice) -> None:
    """Raise ConfigError when rows of this model and configuration cannot be shared: before a weight is loaded."""
    size = config.parallel.sequence_parallel_size
    if size == 1:
        return
    what = f"parallel.sequence_parallel_size = {size}"
    if choice.kind == "padded":
        raise ConfigError(
            f"{what} shares packed rows, and model.use_varlen_attn = false pads them",
            "set model.use_varlen_attn=true",
        )
    if choice.kind == "single":
        raise ConfigError(
            f"{what} shares packed rows, and this backbone runs one conversation at a time: {choice.reason}",
            "set parallel.sequence_parallel_size=1",
        )
    if config.train.kernels == "compile":
        raise ConfigError(
            f"{what} is not proven with train.kernels = 'compile'",
            "set train.kernels=torch, or parallel.sequence_parallel_size=1",
        )
    for key, value in _drawn(model_config):
        raise ConfigError(
            f"config.json has {key} = {value}, and with {what} each process would draw its own",
            f"set {key} to 0 there, or parallel.sequence_parallel_size=1",
        )


# Of a classifier's own forward, which is not run: the head is.
_OF_HEADS = ("classifier", "summary", "head_dropout", "cls_dropout")


def _drawn(model_config: PreTrainedConfig) -> Iterator[tuple[str, float]]:
    """What a config says of chance in training: dropout, layers left out, noise."""
    for key, value in model_config.get_text_config().to_dict().items():
        draws = ("drop" in key or "jitter" in key) and not any(part in key for part in _OF_HEADS)
        if draws and isinstance(value, int | float) and value > 0:
            yield key, value
