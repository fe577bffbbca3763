"""The reward model: a transformers `*ForSequenceClassification` with one label, run over packed or padded batches.

What trains is what ships: the head is the model's own `score`, the backbone its base model. Scores and head are
float32 at least (float64 when the model is).
Axes: T tokens of the row, S scores, D hidden size, B conversations, L padded length.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rmcli import output
from rmcli.backbones import architectures
from rmcli.backbones.internlm2 import auto as internlm2
from rmcli.config.layers import Config, ModelSection, TrainSection, pretrained_arguments
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import flops, last_layer
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, check_backend, register
from rmcli.records import Rows
from rmcli.tokens.tokenizer import RewardTokenizer, from_pretrained, load_model_config


def load_model(
    model: ModelSection,
    reward: RewardTokenizer,
    seed: int = 0,
    rows: Rows = "packed",
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The model in float32 on `device`, set to run `rows`. Its head is zero unless trained before.

    With a new head the reward token's embedding is made fit to train (see prepare_reward_row). Random weights are
    drawn on the device, each kind from its own generator: drawing eight billion on a CPU takes minutes.
    """
    name = model.pretrained_model_name_or_path
    assert name is not None
    register()
    config = load_model_config(model)
    architectures.ensure_classifier(config)
    if model.random_weights:
        config.num_labels = 1
        torch.manual_seed(seed)
        with torch.device(device):
            network: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        new_head = True
    else:
        arguments = pretrained_arguments(name, model.revision)
        extra: dict[str, Any] = {"num_labels": 1, "dtype": torch.float32, "output_loading_info": True}
        if "gguf_file" in arguments:
            extra["quantization_config"] = _dequantize(arguments["gguf_file"])
        network, report = from_pretrained(internlm2.AutoSequenceClassifier, "weights", name, {**arguments, **extra})
        missing = set(report["missing_keys"])
        new_head = "score.weight" in missing
        if missing - {"score.weight"} or report["mismatched_keys"]:
            wrong = sorted(missing - {"score.weight"}) or [str(key) for key in report["mismatched_keys"]]
            raise RmcliError(
                f"the weights of {name} do not fill the model: {len(wrong)} missing or misshapen, first {wrong[0]}",
                "the checkpoint must hold every weight its config.json asks for",
            )
    head = score_head(network)
    if new_head:
        nn.init.zeros_(head.weight)
    elif not torch.isfinite(head.weight).all():
        raise RmcliError(f"the score head of {name} is not finite", "the checkpoint is damaged")
    known_id = getattr(network.config, "reward_token_id", None)  # of the checkpoint, before ours is written there
    label_for_reward(network.config, name, reward)
    forget_padding(network)
    # A trained head belongs to its own token's row as it is; another token's row may never have been trained.
    if new_head or known_id not in (None, reward.reward_token_id) or reward.grown_from is not None:
        prepare_reward_row(network, reward)
        forget_padding(network)
    if rows == "packed":
        network.set_attn_implementation(ATTENTION_NAME)
        assert network.config._attn_implementation == ATTENTION_NAME  # choose_rows has seen to it
        set_attention(network, model.attention)
        if model.trim_last_layer and architectures.trims_last_layer(config):
            trim(network)
    return network.to(device).eval()  # pyright: ignore[reportArgumentType] (transformers wraps torch's `to`)


def set_attention(network: Any, backend: str) -> None:
    """Let packed rows be run by this backend, a value of `model.attention`; a network never told runs auto."""
    network.packed_backend = backend


@contextmanager
def attention_backend(network: Any, backend: str) -> Iterator[None]:
    """Run packed rows by another backend for a while."""
    before = getattr(network, "packed_backend", "auto")
    set_attention(network, backend)
    try:
        yield
    finally:
        set_attention(network, before)


def check_attention(config: Config, model_config: PreTrainedConfig, rows: Rows, device: torch.device) -> None:
    """Raise ConfigError when `model.attention` cannot run this model here, before its weights are loaded."""
    backend = config.model.attention
    if rows != "packed":
        if backend != "auto":
            output.warn(f"model.attention = {backend!r} has no effect: it is for packed rows, and these are {rows}")
        return
    reduced = is_reduced(config.model.dtype, device)
    check_backend(backend, device, reduced)
    text = model_config.get_text_config()
    no_dropout = backend in ("varlen", "flex") or (backend == "auto" and device.type == "cuda" and reduced)
    for key in ("attention_dropout", "attn_pdrop"):
        if no_dropout and getattr(text, key, 0):
            raise ConfigError(
                f"config.json has {key} = {getattr(text, key)}, and model.attention = {backend!r} has no dropout",
                f"set {key} to 0 there, or model.attention=sdpa",
            )


def _last_layer(network: PreTrainedModel) -> nn.Module | None:
    return last_layer.find(backbone(network), network.config.get_text_config().num_hidden_layers)


def trim(network: PreTrainedModel) -> None:
    """Compute the last layer at the reward positions only, for packed rows. Raises RmcliError without layers."""
    layer = _last_layer(network)
    if layer is None:
        raise RmcliError(
            f"no list of layers in {type(network).__name__}: its last layer is not found",
            "set model.trim_last_layer=false",
        )
    last_layer.trim(layer)


def is_trimmed(network: PreTrainedModel) -> bool:
    """Whether the last layer runs at the reward positions only."""
    return last_layer.is_trimmed(_last_layer(network))


def whole_row_layers(network: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers that run on every token of a row: all, or all but a trimmed last one."""
    layers = last_layer.find_layers(backbone(network), network.config.get_text_config().num_hidden_layers)
    whole = list(layers or ())
    return whole[:-1] if is_trimmed(network) else whole


def flop_counter(network: PreTrainedModel) -> flops.FlopCounter:
    """What counts the model FLOPs of groups on this network, trimmed as it is."""
    text = network.config.get_text_config()
    return flops.FlopCounter.of(backbone(network), _last_layer(network), text, is_trimmed(network))


def forget_padding(network: PreTrainedModel) -> None:
    """Let every row of the embedding learn: `padding_idx` would keep the pad token's gradient at zero.

    Packed rows have no padding, so a pad token is one that the text holds; where eos is the pad token (SmolLM2) it
    ends every turn, and in natural mode it is the reward token itself. In padded rows nothing follows from padding.
    """
    embedding: Any = network.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None


@torch.no_grad()
def prepare_reward_row(network: PreTrainedModel, reward: RewardTokenizer) -> None:
    """Grow the embedding when the reward token needs a row it has not, and give an untrained row a sensible start.

    A row whose norm is below 1 % of the median is untrained (Llama-3's reserved tokens): RMSNorm at zero has a slope
    of 1/sqrt(eps), so the first gradient would be hundreds of times too large. It starts as the mean of the trained
    rows. Identical rows that are not zero (SmolLM2's) are said and kept. Each change is said aloud.
    """
    token = f"{reward.reward_token} ({reward.reward_token_id})"
    row, weight = reward.reward_token_id, _embedding(network)
    num_rows = len(weight)
    norms = weight.float().norm(dim=1)
    median = norms.median()
    trained = norms >= 0.01 * median
    mean = weight[trained].float().mean(dim=0).to(weight.dtype)
    if row >= num_rows:
        network.resize_token_embeddings(reward.num_embedding_rows, mean_resizing=False)
        weight = _embedding(network)
        weight[num_rows:] = mean
        output.warn(
            f"the embedding grows from {num_rows:,} to {len(weight):,} rows for {token}; "
            f"new rows start as the mean of {int(trained.sum()):,} trained ones"
        )
        return
    if not trained[row]:
        output.warn(
            f"the embedding row of {token} is untrained (norm {float(norms[row]):.2g}, median {float(median):.2g}): "
            f"it starts as the mean of {int(trained.sum()):,} trained rows"
        )
        weight[row] = mean
        return
    same = (weight == weight[row]).all(dim=1).nonzero().flatten().tolist()
    if len(same) > 1:
        others = ", ".join(str(index) for index in same if index != row)
        output.say(f"the embedding of {reward.reward_token} ({row}) is identical to that of id {others}: kept")


def _embedding(network: PreTrainedModel) -> Tensor:
    return cast(Tensor, network.get_input_embeddings().weight)


def label_for_reward(config: PreTrainedConfig, name: str, reward: RewardTokenizer) -> None:
    """What the config of a one-label reward model says; `regression` keeps pipelines from returning a sigmoid."""
    config.name_or_path = name
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    config.use_cache = False
    config.reward_token_id = reward.reward_token_id
    config.reward_mode = reward.mode
    # transformers pools at the last token that is not pad: with the reward token as pad it would read elsewhere.
    # It reads the text model's own config where there is one.
    config.pad_token_id = config.get_text_config().pad_token_id = reward.pad_token_id


def _dequantize(gguf_file: str) -> Any:
    """Plain weights instead of a quantized model, which could not be trained or saved."""
    from transformers.utils.quantization_config import GgufConfig

    return GgufConfig(gguf_file=gguf_file, dequantize=True)


def score_head(network: PreTrainedModel) -> nn.Linear:
    head = getattr(network, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise RmcliError(
            f"{type(network).__name__} has no linear head named score without a bias", "choose another architecture"
        )
    return head


def backbone(network: PreTrainedModel) -> PreTrainedModel:
    return cast(PreTrainedModel, network.base_model)


def is_reduced(dtype: str, device: torch.device) -> bool:
    """Whether `model.dtype` means bfloat16 arithmetic on this device."""
    return dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")


def arithmetic(network: PreTrainedModel, dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """The precision the backbone computes in: float32 weights are cast; split ones are bfloat16 and need no cast."""
    if network.dtype == torch.bfloat16 or not is_reduced(dtype, device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def hidden_at_scores(
    network: PreTrainedModel,
    batch: Any,
    dtype: str = "auto",
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """(S, D) last hidden state at each reward position of a PackedBatch, SingleBatch or PaddedBatch.

    `inputs_embeds` replaces a packed or padded batch's token embeddings (for gradients with respect to them).
    """
    if (conversations := getattr(batch, "conversations", None)) is not None:
        return torch.cat([hidden_at_scores(network, one, dtype) for one in conversations])
    layout = getattr(batch, "layout", None)
    packed = network.config._attn_implementation == ATTENTION_NAME
    if packed != (layout is not None):
        # Shared positions under a stock attention are read as new documents: wrong without a sign of it.
        raise RmcliError(
            f"attention {network.config._attn_implementation} cannot run a {type(batch).__name__}",
            "model.use_varlen_attn must be what the model was loaded with",
        )
    inputs = {"input_ids": batch.input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    device = batch.input_ids.device
    with arithmetic(network, dtype, device):
        if layout is not None:
            result = backbone(network)(
                **inputs,
                position_ids=batch.position_ids,
                use_cache=False,
                packed_layout=layout,
                packed_backend=getattr(network, "packed_backend", "auto"),
            )
            hidden = result.last_hidden_state[0]
            return hidden if is_trimmed(network) else hidden.index_select(0, batch.score_index)
        forget_longest_row(network)
        result = backbone(network)(**inputs, attention_mask=batch.attention_mask, use_cache=False)
        rows = torch.arange(len(batch.score_index), device=device)
        return result.last_hidden_state[rows, batch.score_index]


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


def scores(network: PreTrainedModel, batch: Any, dtype: str = "auto") -> Tensor:
    """(S,) float32 scores (float64 when the model is), in the order of groups and responses."""
    return apply_head(network, hidden_at_scores(network, batch, dtype))


def apply_head(network: PreTrainedModel, hidden_SD: Tensor) -> Tensor:
    weight = score_head(network).weight
    with torch.autocast(hidden_SD.device.type, enabled=False):
        return (hidden_SD.to(weight.dtype) @ weight.T).squeeze(-1)


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
        layer: Any = _last_layer(network)
        layer.gradient_checkpointing = False


def check_compilable(config: Config, model_config: PreTrainedConfig) -> None:
    """Raise ConfigError where compiled layers would be wrong or dense: before a weight is loaded."""
    text = model_config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) or text.model_type == "gpt_oss":
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


# Operators whose results cost more to compute again than to keep: matmuls and attention.
KEPT_OPERATORS = ("mm", "addmm", "bmm", "_grouped_mm", "scaled_dot_product", "varlen", "flash", "flex_attention")


def _keep_or_recompute(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    name = str(operator).partition("::")[2] or str(operator).partition(".")[2] or str(operator)
    kept = any(part in name for part in KEPT_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def use_stock_attention(network: PreTrainedModel) -> None:
    """One of transformers' own attentions, for good: the fastest the architecture takes."""
    network.set_attn_implementation("sdpa" if backbone(network)._supports_sdpa else "eager")


@contextmanager
def stock_attention(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Run with one of transformers' own attentions for a while."""
    before = str(network.config._attn_implementation)
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


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
    with torch.device("meta"):
        network: Any = AutoModelForSequenceClassification.from_config(model_config)
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


def pick_device(config: Config) -> torch.device:
    """`train.device`; raises ConfigError when cuda is asked for and not there."""
    wanted = config.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = 'cuda', but torch sees no CUDA device", "set train.device=cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
