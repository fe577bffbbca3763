"""What decoder layers run on besides torch's operators: one compiled graph per kind of layer, or Liger's kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from rmcli.config.sections import Config
from rmcli.errors import ConfigError, RmcliError
from rmcli.installed import install_command
from rmcli.model.attention.needs import wants_flex

RECOMPILE_LIMIT = 64  # one per kind of layer and step of a row's shape; dynamo's own is 8


def check_kernels(kernels: str, kind: str, attention: str, device: torch.device) -> None:
    """Raise ConfigError when this value of train.kernels cannot run: before a weight is loaded."""
    if kernels == "torch":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"train.kernels = {kernels!r} is for CUDA, and the device is {device.type}", "set train.kernels=torch"
        )
    if kernels == "liger":
        _liger()
    elif kind != "packed" or attention in ("sdpa", "flex"):
        raise ConfigError(
            f"train.kernels = 'compile' needs packed rows and attention in one kernel call; rows are {kind}, "
            f"model.attention = {attention!r}",
            "set train.kernels=torch, or model.attention=varlen",
        )


def check_compilable(config: Config, model_config: PreTrainedConfig) -> None:
    """Raise ConfigError where compiled layers would be wrong or dense: before a weight is loaded."""
    text = model_config.get_text_config()
    if wants_flex(text):
        raise ConfigError(
            f"train.kernels = 'compile' cannot take {text.model_type}: its attention has soft-capping or sinks",
            "set train.kernels=torch",
        )
    # Until transformers 5.18 the checkpoint lies around the compiled layer and would see into it while it runs.
    around = "__call__" in GradientCheckpointingLayer.__dict__
    if around and config.train.activation_checkpointing == "selective":
        raise ConfigError(
            "train.kernels = 'compile' with selective activation checkpointing needs a newer transformers",
            "set train.activation_checkpointing=full, or none",
        )


def compile_layers(layers: Sequence[nn.Module], backend: Any = "inductor") -> None:
    """Compile each layer in place, whole or not at all; layers of one kind share their graph.

    Layer by layer, as torchtitan does: compiling takes seconds whatever the depth. Batches of one shape never ask
    for another graph.
    """
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=False, backend=backend)


@contextmanager
def explained() -> Iterator[None]:
    """Room for the graphs of a run, and in one line what torch.compile could not take."""
    from torch._dynamo import config, exc

    # A class of its own: too many graphs with fullgraph.
    refused = (exc.TorchDynamoException, getattr(exc, "FailOnRecompileLimitHit", exc.TorchDynamoException))
    try:
        with config.patch(recompile_limit=RECOMPILE_LIMIT):
            yield
    except refused as error:
        reason = str(error).strip().splitlines()[0]
        raise RmcliError(f"torch.compile cannot take this model: {reason}", "set train.kernels=torch") from error


def use_liger(network: Any) -> None:
    """Liger's norms, rotations and MLPs. Raises RmcliError for a model that Liger does not know.

    Its cross entropies replace the forward of a model with an LM head, which a reward model is not.
    """
    liger, model_type = _liger(), network.config.model_type
    if model_type not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RmcliError(f"Liger has no kernels for {model_type}", "set train.kernels=compile, or torch")
    liger._apply_liger_kernel_to_instance(model=network, cross_entropy=False, fused_linear_cross_entropy=False)


def _liger() -> Any:
    try:
        return import_module("liger_kernel.transformers.monkey_patch")
    except ImportError as error:
        raise ConfigError(
            f"train.kernels = 'liger': liger-kernel cannot be imported: {error}", install_command("liger")
        ) from error
