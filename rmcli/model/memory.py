"""What a training step needs, estimated from the config alone, and what can be had."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rmcli.backbones import architectures
from rmcli.backbones.pretrained import explaining_sizes
from rmcli.config.sections import Config, TrainSection
from rmcli.model import limits
from rmcli.model.device import is_reduced, pick_device


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one training step needs, by what for."""

    num_parameters: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations


def bytes_per_parameter(train: TrainSection, reduced: bool, several_forwards: bool) -> int:
    """Of weights, gradients and AdamW's two states, by `train.master_weights` and `train.optimizer`."""
    states = 2 if train.optimizer == "adamw_8bit" else 8
    if train.master_weights == "split":
        return 2 + 2 + (4 if several_forwards else 2) + states  # gradients of several forwards are float32 sums
    return 4 + (2 if reduced else 0) + 4 + states  # autocast keeps a bf16 copy of the weights


def estimate_memory(
    config: Config, model_config: PreTrainedConfig, tokens_per_forward: int, several_forwards: bool = True
) -> MemoryEstimate:
    """From the config alone: bytes_per_parameter and activations.

    Activations per token and layer, in numbers: about 10 of the hidden size, 5 of the MLP's, and the projections.
    With full activation checkpointing one hidden state per layer is kept, with selective what matmuls and attention
    give (about 5 of the hidden size, 2 of the MLP's); in both one whole layer at a time.
    """
    text = model_config.get_text_config()
    architectures.ensure_classifier(model_config)
    model_config.num_labels = 1
    with torch.device("meta"), explaining_sizes(str(config.model.pretrained_model_name_or_path)):
        network: Any = AutoModelForSequenceClassification.from_config(model_config, trust_remote_code=False)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    reduced = is_reduced(config.model.dtype, pick_device(config))
    bytes_per_number = 2 if reduced else 4
    intermediate_size = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    per_layer = 10 * text.hidden_size + 5 * intermediate_size
    layers = text.num_hidden_layers
    per_token = {
        "none": layers * per_layer,
        "selective": layers * (5 * text.hidden_size + 2 * intermediate_size) + per_layer,
        "full": layers * text.hidden_size + per_layer,
    }[config.train.activation_checkpointing]
    states = num_parameters * bytes_per_parameter(config.train, reduced, several_forwards)
    return MemoryEstimate(num_parameters, states, tokens_per_forward * per_token * bytes_per_number)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else limits.host_memory()
