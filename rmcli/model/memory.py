"""What a training step needs, estimated from the config alone, and what can be had."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rmcli.backbones import architectures
from rmcli.backbones.pretrained import explaining_sizes
from rmcli.config.sections import Config, TrainSection
from rmcli.model import adapter, limits
from rmcli.model.compact_adamw import PIECE, has_8_bits, scale_shape
from rmcli.model.device import is_reduced, pick_device
from rmcli.model.flops import FlopCounter
from rmcli.model.network import backbone, check_loads_again, flop_counter, score_head, trim
from rmcli.model.quantize import BITS_PER_WEIGHT, packable
from rmcli.parallel import world
from rmcli.parallel.mesh import MeshShape
from rmcli.records import BatchKind
from rmcli.tokens.tokenizer import RewardTokenizer

# Measured on a CPU beside all that is counted: the libraries' own buffers and code, once they compute.
_OF_THE_PROCESS = 24 * 2**20
_UPDATE_COPIES = 7  # float32 copies of one piece that CompactAdamW holds at a time


@dataclass(frozen=True)
class NetworkSizes:
    """What is known of a network before it is loaded: how many numbers, in which weights and layers; its FLOPs."""

    num_parameters: int
    weight_shapes: tuple[tuple[int, ...], ...]  # of all but the head
    trained_shapes: tuple[tuple[int, ...], ...]  # of those that train, but for the head
    in_4_bits: int  # numbers of frozen linear layers that are quantized
    layers: int
    whole_layers: int  # those that run on every token: all, or all but a trimmed last one
    hidden_size: int
    intermediate_size: int
    counter: FlopCounter

    @property
    def trained(self) -> int:
        """Numbers that train, the head's among them."""
        return self.num_parameters - self.frozen

    @property
    def frozen(self) -> int:
        return sum(map(prod, self.weight_shapes)) - sum(map(prod, self.trained_shapes))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one training step needs, by what for. `tokens` are those of its largest forward.

    `update` is what the optimizer holds beside its states while it works, when the activations are gone. On a CPU
    gradients and activations count in full: what a forward frees mostly stays with the process. `copies` are those of
    a checkpoint that is written beside the training.
    """

    sizes: NetworkSizes
    several_forwards: bool
    weights: int
    gradients: int
    states: int
    activations_per_token: int
    tokens: int
    update: int
    copies: int
    process: int
    start: int = 0  # before step 1: weights that become smaller then

    @property
    def num_parameters(self) -> int:
        return self.sizes.num_parameters

    @property
    def activations(self) -> int:
        return self.activations_per_token * self.tokens

    @property
    def held(self) -> int:
        """Of weights, gradients and optimizer states, whatever the forward is."""
        return self.weights + self.gradients + self.states

    @property
    def other(self) -> int:
        return self.copies + self.process + max(0, self.update - self.activations)

    @property
    def total(self) -> int:
        return max(self.start + self.process, self.held + self.activations + self.other)


def sizes_of(
    config: Config, model_config: PreTrainedConfig, kind: BatchKind = "packed", reward: RewardTokenizer | None = None
) -> NetworkSizes:
    """From the config alone: the network is made without its numbers. `reward`: where it may have adapters."""
    text = model_config.get_text_config()
    architectures.ensure_classifier(model_config)
    model_config.num_labels = 1
    with torch.device("meta"), explaining_sizes(str(config.model.pretrained_model_name_or_path)):
        network: Any = AutoModelForSequenceClassification.from_config(model_config, trust_remote_code=False)
    head = score_head(network).weight
    check_loads_again(network)  # what could not be exported is not trained
    trims = kind == "packed" and config.model.trim_last_layer and architectures.trims_last_layer(model_config)
    if trims:
        trim(network)
    counter, in_4_bits = flop_counter(network), 0
    if config.lora.r is not None and reward is not None:
        if config.model.quantization == "nf4":
            in_4_bits = sum(one.weight.numel() for one in packable(backbone(network)).values())
        with torch.device("meta"):
            adapter.insert(network, adapter.settings(config.lora, reward, network))
        counter = replace(counter, per_weight=4.0)
    weights = [weight for weight in network.parameters() if weight is not head]
    weight_shapes = tuple(tuple(weight.shape) for weight in weights)
    return NetworkSizes(
        num_parameters=sum(map(prod, weight_shapes)) + head.numel(),
        weight_shapes=weight_shapes,
        trained_shapes=tuple(tuple(weight.shape) for weight in weights if weight.requires_grad),
        in_4_bits=in_4_bits,
        layers=text.num_hidden_layers,
        whole_layers=text.num_hidden_layers - trims,
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        counter=counter,
    )


def estimate(
    sizes: NetworkSizes,
    config: Config,
    tokens: int,
    several_forwards: bool,
    mesh: MeshShape | None = None,
) -> MemoryEstimate:
    """Of a step whose largest forward has so many tokens; `several_forwards`: whether it adds up gradients.

    With the `mesh` of several processes: what one of them needs.
    """
    if mesh is not None and mesh.size > 1:
        return _of_one_process(estimate(sizes, config, tokens, True), sizes, mesh)
    train, device = config.train, pick_device(config)
    reduced = is_reduced(config.model.dtype, device)
    split = train.master_weights == "split"
    plain = not split and train.optimizer == "adamw"
    return MemoryEstimate(
        sizes=sizes,
        several_forwards=several_forwards,
        # Autocast keeps a bfloat16 copy of what trains.
        weights=sizes.trained * (2 if split else 4 + (2 if reduced else 0)) + _frozen_bytes(sizes, reduced),
        gradients=sizes.trained * (2 if split and not several_forwards else 4),  # sums of several are float32
        states=state_bytes(sizes, train),
        activations_per_token=_activation_numbers(sizes, train) * (2 if reduced else 4),
        tokens=tokens,
        update=0 if plain else 4 * _UPDATE_COPIES * min(PIECE, max(map(prod, sizes.trained_shapes))),
        # Copies are in main memory: not where a GPU's weights are.
        copies=checkpoint_bytes(sizes, train) if train.async_checkpoint and device.type == "cpu" else 0,
        process=0 if device.type == "cuda" else _OF_THE_PROCESS,
        start=_start_bytes(sizes, device.type),
    )


def _frozen_bytes(sizes: NetworkSizes, reduced: bool) -> int:
    """Of weights that do not train, and, where any are in 4 bits, the largest one taken out of them."""
    if not sizes.frozen:
        return 0
    each = 2 if reduced else 4
    # The embedding is put together anew with the row that trains, and its gradient passes once whole.
    largest = (2 + (sizes.in_4_bits > 0)) * max(map(prod, sizes.weight_shapes))
    return each * (sizes.frozen - sizes.in_4_bits + largest) + _packed_bytes(sizes)


def _start_bytes(sizes: NetworkSizes, device_type: str) -> int:
    """Before step 1 what is frozen is float32, in main memory all of it: 4 bits are made of that."""
    if not sizes.frozen:
        return 0
    on_device = sizes.num_parameters - (sizes.in_4_bits if device_type == "cuda" else 0)
    return 4 * on_device + _packed_bytes(sizes)


def _packed_bytes(sizes: NetworkSizes) -> int:
    return int(sizes.in_4_bits * BITS_PER_WEIGHT / 8)


def _of_one_process(alone: MemoryEstimate, sizes: NetworkSizes, mesh: MeshShape) -> MemoryEstimate:
    """Its parts of weights, gradients and states, and the units that are put together at a time.

    Those are the rest of the backbone, whose largest weight is the embedding, and two layers: one is computed with
    while the next one comes.
    """
    body, largest = sum(map(prod, sizes.weight_shapes)), max(map(prod, sizes.weight_shapes))
    together = largest + 2 * (body - largest) // sizes.layers
    return replace(
        alone,
        weights=4 * sizes.num_parameters // mesh.shard + 4 * together,
        gradients=alone.gradients // mesh.shard + 4 * together,
        states=alone.states // mesh.shard,
        copies=alone.copies // mesh.shard,
        start=0,  # the first process reads the model in main memory
    )


def checkpoint_bytes(sizes: NetworkSizes, train: TrainSection) -> int:
    """Weights and the optimizer's states, as a checkpoint has them."""
    return checkpoint_weights(sizes, train) + state_bytes(sizes, train)


def checkpoint_weights(sizes: NetworkSizes, train: TrainSection) -> int:
    """Bytes of the weights alone: 2 each where masters are split, else 4."""
    return sizes.trained * (2 if train.master_weights == "split" else 4)


def state_bytes(sizes: NetworkSizes, train: TrainSection) -> int:
    """AdamW's two states, and the low halves of split masters, in memory and in a checkpoint.

    The head has neither low halves nor 8-bit states. Not counted: each weight's number of steps.
    """
    of_body = sum(map(prod, sizes.trained_shapes))
    low = 2 * of_body if train.master_weights == "split" else 0
    bits = 8 if train.optimizer == "adamw_8bit" else 32
    body = sum(2 * _one_state(shape, bits) for shape in sizes.trained_shapes)
    return body + low + 8 * (sizes.trained - of_body)


def _one_state(shape: tuple[int, ...], bits: int) -> int:
    return prod(shape) + 4 * prod(scale_shape(shape)) if has_8_bits(shape, bits) else 4 * prod(shape)


def _activation_numbers(sizes: NetworkSizes, train: TrainSection) -> int:
    """Per token: about 10 of the hidden size and 5 of the MLP's in each layer that runs on every token.

    One layer's worth more is what its backward holds meanwhile. With full activation checkpointing one hidden state
    per layer is kept, with selective what matmuls and attention give (about 5 of the hidden size, 2 of the MLP's); in
    both, one whole layer at a time is there again.
    """
    per_layer = 10 * sizes.hidden_size + 5 * sizes.intermediate_size
    kept = {
        "none": sizes.whole_layers * per_layer,
        "selective": sizes.whole_layers * (5 * sizes.hidden_size + 2 * sizes.intermediate_size) + per_layer,
        "full": sizes.layers * sizes.hidden_size + per_layer,
    }
    return kept[train.activation_checkpointing] + per_layer


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that this process can have on the device now; each of several on one machine its part of main memory."""
    if device.type == "cuda" and processes > world.size():  # they are still to be started: this one takes no GPU
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return limits.host_memory() // min(processes, world.local_size(processes))
