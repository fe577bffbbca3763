"""Llama's config and weights in InternLM2's own layout: what config.py and weights.py read, written."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rmcli.backbones.internlm2.auto import MODEL_TYPE
from rmcli.backbones.internlm2.config import llama_config
from rmcli.backbones.internlm2.weights import llama_names
from rmcli.config.trained import REWARD_ARCHITECTURE
from rmcli.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# What the reward model's config.json says beside its sizes, under the same names in both layouts.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "reward_token_id",
    "reward_mode",
    "reward_bos_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "use_cache",
)


def internlm2_config(network: Any) -> dict[str, Any]:
    """The config.json of a classifier in InternLM2's layout. Raises ConfigError for a network it cannot describe."""
    config = network.config
    refused = ConfigError(
        f"{type(network).__name__} cannot be written in InternLM2's own layout", "leave --format internlm2 out"
    )
    if config.model_type != "llama":
        raise refused
    values = config.to_dict()
    rope = dict(config.rope_parameters)
    kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
    found = {key: values[key] for key in _SAME if values.get(key) is not None}
    found |= {
        "architectures": [REWARD_ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "bias": config.attention_bias,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "dtype": str(network.dtype).removeprefix("torch."),
    }
    try:
        read = llama_config(found, "the export")
    except ConfigError:  # a rope that InternLM2 has not
        raise refused from None
    different = ("rope_parameters", "head_dim", "attention_bias", "mlp_bias")
    if any(getattr(read, key) != getattr(config, key) for key in different):
        raise refused
    return found


def internlm2_weights(network: Any) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor) of a Llama classifier by InternLM2's names, queries, keys and values fused."""
    weights = network.state_dict()
    for name, sources in llama_names(network.config).items():
        parts = [weights[source] for source in sources]
        own = name if name.startswith("v_head") else f"model.{name}"
        yield own, join_qkv(parts, network.config) if len(parts) == 3 else parts[0]


def join_qkv(parts: "Sequence[Tensor]", config: Any) -> "Tensor":
    """The fused `wqkv` (weight or bias) of queries, keys and values, group by group: `split_qkv` takes it apart."""
    import torch

    grouped = [part.reshape(config.num_key_value_heads, -1, config.head_dim, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 2)
