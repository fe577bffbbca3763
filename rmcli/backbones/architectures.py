"""What an architecture can run: packed rows or one conversation per forward; and the classifier it becomes.

Packed rows are exact where every layer sees other tokens through attention alone. PROVEN lists the architectures for
which a test shows it; for any other the self-test at the start of a run decides.
"""

from dataclasses import dataclass
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from rmcli.errors import ConfigError
from rmcli.records import BatchKind

ATTENTION_LAYER_TYPES = {"full_attention", "sliding_attention"}
LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
# Attributes of a config that bound what a token sees: a self-test of a few tokens cannot feel them.
BOUNDS = ("sliding_window", "attention_chunk_size", "local_attention", "index_topk")

# model_type of the text model. tests/backbones/test_architectures.py holds this list and docs/backbones.md against
# the runs.
PROVEN = frozenset([
    "afmoe", "apertus", "arcee", "aria_text", "beam", "bitnet", "cohere", "cohere2", "cohere2_moe", "cwm",
    "deepseek_v2", "deepseek_v3", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "gpt2",
    "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax",
    "internlm3", "iquestcoder", "jais2", "jetmoe", "laguna", "llama", "mellum", "minimax_m2", "ministral",
    "ministral3", "mistral", "mixtral", "nanochat", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "starcoder2", "vaultgemma",
    "youtu",
])  # fmt: skip
# Of these, the ones whose last layer cannot run at the reward positions only: it calls attention twice, remembers the
# shape of the row, or there is no list of layers.
WHOLE_LAST_LAYER = frozenset(["diffllama", "gpt2", "gpt_bigcode", "hrm_text"])


@dataclass(frozen=True)
class BatchChoice:
    """How conversations are laid into forwards, and why not packed when they are not."""

    kind: BatchKind
    reason: str | None = None


def choose_batches(use_varlen_attn: bool, config: PreTrainedConfig, max_length: int) -> BatchChoice:
    """What this architecture can run, known from its config alone. `max_length` in tokens, reward token included."""
    reason = _why_single(config, max_length)
    if not use_varlen_attn:
        # Rope that depends on the longest row of a batch is wrong for its neighbours in a padded batch as well.
        depends = _rope_switch(config, max_length) is not None
        return BatchChoice("single", reason) if depends else BatchChoice("padded")
    return BatchChoice("single", reason) if reason else BatchChoice("packed")


def is_proven(config: PreTrainedConfig) -> bool:
    return config.get_text_config().model_type in PROVEN


def trims_last_layer(config: PreTrainedConfig) -> bool:
    """Whether it is proven that the last layer can run at the reward positions only."""
    return is_proven(config) and config.get_text_config().model_type not in WHOLE_LAST_LAYER


def _why_single(config: PreTrainedConfig, max_length: int) -> str | None:
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or []) - ATTENTION_LAYER_TYPES)
    if others:
        return f"its layers of type {', '.join(others)} carry state from token to token or cut attention into chunks"
    if (switch := _rope_switch(config, max_length)) is not None:
        return f"its rope changes at {switch:,} tokens and data.max_length is {max_length:,}"
    if not getattr(_backbone_class(config), "_supports_attention_backend", False):
        return "it takes no attention but its own"
    bounds = [name for name in BOUNDS if getattr(text, name, None)]
    if not is_proven(config) and bounds:
        return f"{text.model_type} is not proven and bounds its attention ({', '.join(bounds)})"
    return None


def _rope_switch(config: PreTrainedConfig, max_length: int) -> int | None:
    """The length at which a rope of this config changes its frequencies, when conversations can be longer."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in by_layer_type or [parameters]:
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            lengths = (
                text.max_position_embeddings,
                getattr(text, "original_max_position_embeddings", None),
                rope.get("original_max_position_embeddings"),
            )
            switch = min(int(length) for length in lengths if length)
            if max_length > switch:
                return switch
    return None


def _backbone_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    found: Any = AutoModel._model_mapping.get(type(config), None)  # type: ignore[attr-defined]
    if found is None:
        raise ConfigError(f"transformers has no model for {type(config).__name__}", "choose another architecture")
    backbone = found[0] if isinstance(found, tuple) else found
    if not backbone.__name__.endswith(("Model", "Decoder", "Encoder")):
        raise ConfigError(
            f"{type(config).__name__}: transformers gives {backbone.__name__}, which is no backbone without a head",
            f"give the text model alone, of model_type {config.get_text_config().model_type}",
        )
    return backbone


def loads_only_here(config: PreTrainedConfig) -> bool:
    """Whether transformers lacks a `*ForSequenceClassification` of this architecture, so that we make one."""
    made = AutoModelForSequenceClassification._model_mapping.get(type(config), None)  # type: ignore[attr-defined]
    return made is None or made.__module__ == __name__


def ensure_classifier(config: PreTrainedConfig) -> None:
    """Make AutoModelForSequenceClassification know this architecture: its backbone and a linear head named `score`.

    What is made is transformers' own generic classifier on the architecture's base class, as most of those that
    transformers has. Raises ConfigError for what has no backbone.
    """
    backbone = _backbone_class(config)
    if type(config) in AutoModelForSequenceClassification._model_mapping:  # type: ignore[attr-defined]
        return
    base = next(c for c in backbone.__mro__[1:] if issubclass(c, PreTrainedModel))
    name = backbone.__name__.removesuffix("Model") + "ForSequenceClassification"
    # Where the backbone lies in the classifier: Llama 4's base class names no place of its own.
    prefix = base.base_model_prefix or backbone.base_model_prefix or "model"
    members: dict[str, Any] = {"base_model_prefix": prefix, "__module__": __name__}
    classifier = type(name, (GenericForSequenceClassification, base), members)
    classifier.config_class = type(config)  # type: ignore[attr-defined]
    # Not by `register`: for one of transformers' own configs it does nothing, and says nothing (5.17).
    AutoModelForSequenceClassification._model_mapping._extra_content[type(config)] = classifier  # type: ignore[attr-defined]
