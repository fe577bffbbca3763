"""The last layer computed at the reward positions only, exactly.

A score reads one hidden state per conversation. In the last layer only keys and values are needed of every token;
queries, the attention's output, the MLP and the final norm are needed at the reward positions alone. No name inside a
layer is known here: the layer runs on the whole row until it calls its attention, which takes keys and values out,
and then on the reward positions.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rmcli.errors import RmcliError
from rmcli.model.attention.layout import KeysFound, KeysWanted, PackedLayout, ScoresWanted
from rmcli.model.attention.row_share import RowShare


def find_layers(backbone: nn.Module, num_layers: int) -> nn.ModuleList | None:
    """The decoder layers: the first list of `num_layers` modules; None without such a list."""
    lists = (m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers)
    return next(lists, None)


def find(backbone: nn.Module, num_layers: int) -> nn.Module | None:
    """The last decoder layer."""
    layers = find_layers(backbone, num_layers)
    return None if layers is None else layers[-1]


def trim(layer: Any) -> None:
    """Let the layer, given a packed layout, return (1, S, D) instead of (1, T, D): S reward positions of T tokens.

    Given a process's share of a row it returns all S of the row on each process.
    Without a layout (a stock attention) it stays as it is. Doing it again changes nothing.
    """
    layer.forward = MethodType(_trimmed_forward, layer)  # bound, so that a copy of the network runs its own layer


def is_trimmed(layer: Any) -> bool:
    return layer is not None and getattr(layer.__dict__.get("forward"), "__func__", None) is _trimmed_forward


def _trimmed_forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    whole = type(layer).forward.__get__(layer)
    layout = kwargs.get("packed_layout")
    if layout is None:
        return whole(*args, **kwargs)
    key, value = _keys_and_values(whole, args, kwargs)
    args, kwargs = _at_scores((args, kwargs), layout)
    return whole(*args, **{**kwargs, "packed_layout": ScoresWanted(layout.at_scores, key, value)})


def _keys_and_values(whole: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of every token, as the layer hands them to its attention."""
    try:
        whole(*args, **{**kwargs, "packed_layout": KeysWanted()})
    except KeysFound as found:
        return found.key, found.value
    raise RmcliError("the last layer never calls its attention", "set model.trim_last_layer=false")


def _at_scores(value: Any, layout: PackedLayout | RowShare) -> Any:
    """`value` with every tensor over the row's tokens, (T, ...) or (1, T, ...), cut to the reward positions.

    Of a share of the row T are the share's tokens, and the reward positions are those of the whole row.
    """
    num_tokens = layout.num_tokens
    if isinstance(value, tuple | list):
        return type(value)(_at_scores(item, layout) for item in value)
    if isinstance(value, dict):
        return {name: _at_scores(item, layout) for name, item in value.items()}
    if isinstance(value, Tensor):
        for axis in range(min(value.ndim, 2)):
            if value.shape[axis] == num_tokens and value.shape[:axis] in ((), torch.Size([1])):
                return layout.take_scores(value, axis)
    return value
