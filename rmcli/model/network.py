"""The parts of a network that rmcli touches: its head, its backbone, its decoder layers."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from rmcli.errors import RmcliError
from rmcli.model import flops, last_layer


def last_decoder_layer(network: PreTrainedModel) -> nn.Module | None:
    return last_layer.find(backbone(network), network.config.get_text_config().num_hidden_layers)


def trim(network: PreTrainedModel) -> None:
    """Compute the last layer at the reward positions only, for packed rows. Raises RmcliError without layers."""
    layer = last_decoder_layer(network)
    if layer is None:
        raise RmcliError(
            f"no list of layers in {type(network).__name__}: its last layer is not found",
            "set model.trim_last_layer=false",
        )
    last_layer.trim(layer)


def is_trimmed(network: PreTrainedModel) -> bool:
    """Whether the last layer runs at the reward positions only."""
    return last_layer.is_trimmed(last_decoder_layer(network))


def whole_row_layers(network: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers that run on every token of a row: all, or all but a trimmed last one."""
    layers = last_layer.find_layers(backbone(network), network.config.get_text_config().num_hidden_layers)
    whole = list(layers or ())
    return whole[:-1] if is_trimmed(network) else whole


def flop_counter(network: PreTrainedModel) -> flops.FlopCounter:
    """What counts the model FLOPs of groups on this network, trimmed as it is."""
    text = network.config.get_text_config()
    return flops.FlopCounter.of(backbone(network), last_decoder_layer(network), text, is_trimmed(network))


def score_head(network: PreTrainedModel) -> nn.Linear:
    head = getattr(network, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise RmcliError(
            f"{type(network).__name__} has no linear head named score without a bias", "choose another architecture"
        )
    return head


def check_loads_again(network: PreTrainedModel) -> None:
    """Raise RmcliError where transformers could not load what is trained: it finds weights by their place.

    A weight must lie in the head or in the backbone, and the backbone where the class says.
    """
    place = network.base_model_prefix
    lost = [name for name, _ in network.named_parameters() if not name.startswith((f"{place}.", "score."))]
    if lost or not place or not hasattr(network, place):
        what = f"{lost[0] if lost else 'the backbone'} is not in {place!r}, where transformers looks for it"
        raise RmcliError(
            f"a trained {type(network).__name__} could not be loaded again: {what}",
            "choose another architecture: docs/backbones.md lists those that train",
        )


def backbone(network: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, network.base_model)
