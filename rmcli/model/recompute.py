"""Activation checkpointing: what the backward pass computes again instead of keeping."""

import functools
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from rmcli.model.network import is_trimmed, last_decoder_layer


def checkpoint_activations(network: PreTrainedModel, kind: str) -> None:
    """Recompute activations in the backward pass: all of a layer's ("full"), or what is cheap ("selective").

    A trimmed last layer keeps its own, which are few. transformers renamed the switch in 5.23 (old name until v6).
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        arguments["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_or_recompute)
    name = "activation_checkpointing_enable"
    (getattr(network, name) if hasattr(network, name) else network.gradient_checkpointing_enable)(arguments)
    if is_trimmed(network):
        layer: Any = last_decoder_layer(network)
        layer.gradient_checkpointing = False


# Operators whose results cost more to compute again than to keep: matmuls, attention, what other processes sent.
KEPT_OPERATORS = (
    *("mm", "addmm", "bmm", "_grouped_mm", "scaled_dot_product", "varlen", "flash", "flex_attention"),
    *("all_to_all_single", "all_reduce"),
)


def _keep_or_recompute(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    name = str(operator).partition("::")[2] or str(operator).partition(".")[2] or str(operator)
    kept = any(part in name for part in KEPT_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
