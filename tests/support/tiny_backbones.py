"""Tiny random configs of the decoders in transformers: what test_architectures runs and docs/backbones.md lists.

Sizes are given by the names that configs use for them; PACKED and SINGLE add what one architecture needs. Windows,
soft-caps and sinks are small enough to be felt by sequences of a few tokens.
"""

import inspect
from functools import cache
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "sliding_window": 6,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_inner": 80,
    "n_positions": 128,
    "dff": 80,
    "ffn_dim": 80,
    "word_embed_proj_dim": 48,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "attention_dropout": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0,
    "dropout": 0.0,
    # recurrent and convolutional layers
    "state_size": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_LATENT = {"num_key_value_heads": 6, "head_dim": None}

# What packed rows must get right: architecture -> what its tiny config changes.
PACKED: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": _MIXED,
    "cwm": _MIXED,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {},
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": _MIXED,
    "flex_olmo": {},
    "gemma": {},
    "gemma2": _MIXED | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": _MIXED | {"query_pre_attn_scalar": 8},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": _LATENT,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": _MIXED,
    "granite": {},
    "granitemoe": {},
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jais2": {},
    "jetmoe": {},
    "llama": {},
    "minimax_m2": {},
    "ministral": _MIXED,
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "nanochat": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _MIXED,
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": _MIXED | {"use_sliding_window": True},
    "qwen3": _MIXED | {"use_sliding_window": True},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "starcoder2": {},
    "vaultgemma": _MIXED | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "afmoe": _MIXED,
    "youtu": _LATENT,
    "internlm3": {},
    "hyperclovax": {},
    "iquestcoder": {},
    "solar_open": {},
    "hy_v3": {},
    "hrm_text": {},
    "aria_text": {},
    "exaone_moe": _MIXED,
    "cohere2_moe": _MIXED,
    "granite_swa": _MIXED,
    "granitemoe_swa": _MIXED,
    "mellum": _MIXED,
    "laguna": _MIXED,
    "flint": _MIXED,
    "beam": _MIXED,
}

# Layers that carry state: one conversation per forward.
SINGLE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_mamba": {},
    "jamba": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba": {},
    "minimax": {},
    "nemotron_h": {},
    "olmo_hybrid": {},
    "qwen3_5_text": {},
    "qwen3_next": {},
    "recurrent_gemma": {},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        "attention_chunk_size": 6,
    },
    "biogpt": {},
    "bloom": {},
    "falcon": {},
    "gpt_neo": {},
    "phimoe": {"router_jitter_noise": 0.0},
    "stablelm": {},
}

# What is switched off in a tiny config to see that its scores feel it: architecture -> (what, config changes).
_NO_WINDOW = {"layer_types": ["full_attention"] * 3}
FELT: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("window", _NO_WINDOW),
    "cohere2": ("window", _NO_WINDOW),
    "cwm": ("window", _NO_WINDOW),
    "exaone4": ("window", _NO_WINDOW),
    "gemma2": ("window, soft-cap", {"attn_logit_softcapping": 50.0}),
    "gemma3_text": ("window", _NO_WINDOW),
    "gpt_oss": ("window, sinks", _NO_WINDOW),
    "ministral": ("window", _NO_WINDOW),
    "mistral": ("window", {"sliding_window": 64}),
    "mixtral": ("window", {"sliding_window": 64}),
    "olmo3": ("window", _NO_WINDOW),
    "phi3": ("window", {"sliding_window": 64}),
    "qwen2": ("window", _NO_WINDOW),
    "qwen3": ("window", _NO_WINDOW),
    "exaone_moe": ("window", _NO_WINDOW),
    "cohere2_moe": ("window", _NO_WINDOW),
    "granite_swa": ("window", _NO_WINDOW),
    "granitemoe_swa": ("window", _NO_WINDOW),
    "mellum": ("window", _NO_WINDOW),
    "laguna": ("window", _NO_WINDOW),
    "flint": ("window", _NO_WINDOW),
    "beam": ("window", _NO_WINDOW),
    "starcoder2": ("window", {"sliding_window": 64}),
    "vaultgemma": ("window, soft-cap", {"attn_logit_softcapping": 50.0}),
}


@cache
def _accepted(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    names: set[str] = set()
    for base in config_class.__mro__:
        names |= set(getattr(base, "__annotations__", {}))
        if "__init__" in vars(base):
            names |= set(inspect.signature(base.__init__).parameters)
    return frozenset(names - set(getattr(config_class, "attribute_map", {})))


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The tiny config of one architecture, with one label."""
    config_class = CONFIG_MAPPING[name]
    accepted = _accepted(config_class)
    values = {key: value for key, value in _SIZES.items() if key in accepted}
    values |= PACKED.get(name, SINGLE.get(name, {})) | changes
    return config_class(**{key: value for key, value in values.items() if value is not None}, num_labels=1)
