"""Rotations whose frequencies depend on the longest row: forgotten between rows, or held for good."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

from rmcli.backbones import architectures


def forget_longest_row(network: PreTrainedModel) -> None:
    """Set dynamic rope back to its start: transformers keeps the frequencies of the longest row it has seen.

    Otherwise a conversation past the switch length would score by what ran before it (transformers 5.23,
    modeling_rope_utils.dynamic_rope_update).
    """
    for rope, prefix, name in _ropes(network):
        if name == "dynamic":
            setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)
            current, original = (getattr(rope, f"{prefix}{which}inv_freq") for which in ("", "original_"))
            setattr(rope, f"{prefix}inv_freq", original.to(current.device))


def hold_rope(network: PreTrainedModel) -> None:
    """Keep the frequencies that hold below the switch length, for good, where every conversation is below it.

    transformers would look for the largest position in each forward, and wait for the device.
    """
    forget_longest_row(network)
    for rope, prefix, name in _ropes(network):
        if name in architectures.LENGTH_DEPENDENT_ROPE:
            held = {**rope.rope_type, prefix.removesuffix("_"): "default"} if prefix else "default"
            rope.rope_type = held


def _ropes(network: PreTrainedModel) -> Iterator[tuple[Any, str, str]]:
    """(module, prefix of its names, kind) of each rope, one for each type of layer."""
    for module in network.modules():
        kind = getattr(module, "rope_type", None)
        for layer_type, name in (kind if isinstance(kind, dict) else {"": kind}).items():
            prefix = f"{layer_type}_" if layer_type else ""
            if isinstance(name, str) and hasattr(module, f"{prefix}inv_freq"):
                yield module, prefix, name
