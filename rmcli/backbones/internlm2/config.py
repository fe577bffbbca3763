"""InternLM2's config.json as the Llama config that computes the same."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rmcli.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LlamaConfig

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_NEEDED = (*_SIZES, "rms_norm_eps", "rope_theta", "bias")
_CARRIED = (
    "architectures",
    "initializer_range",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "reward_token_id",
    "reward_mode",
    "reward_bos_token_id",
)


# --- the config ---


def llama_config(values: Mapping[str, Any], name: str) -> "LlamaConfig":
    """The Llama config that computes what an InternLM2 config.json describes.

    Raises ConfigError for a missing or impossible value and for another rope: nothing is guessed.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig

    where = f"config.json of {name} (internlm2)"
    missing = [key for key in _NEEDED if values.get(key) is None]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}", "the folder is not complete")
    heads = values["num_attention_heads"]
    groups = values.get("num_key_value_heads") or heads
    for key, value in (*((key, values[key]) for key in _SIZES), ("num_key_value_heads", groups)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where} has {key} = {value!r}, which is no size", "the file is damaged")
    if values["hidden_size"] % heads or heads % groups:
        raise ConfigError(
            f"{where}: {heads} heads do not divide hidden_size = {values['hidden_size']}, or {groups} key/value "
            "heads do not divide them",
            "the file is damaged",
        )
    carried = {key: values[key] for key in _CARRIED if key in values}
    try:
        return LlamaConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=values["hidden_size"] // heads,
            hidden_act=values.get("hidden_act", "silu"),
            max_position_embeddings=values["max_position_embeddings"],
            rms_norm_eps=values["rms_norm_eps"],
            rope_parameters=_rope_parameters(values, where),
            attention_bias=values["bias"],  # of wqkv and wo; the MLP has none
            mlp_bias=False,
            **carried,
        )
    except StrictDataclassError as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[-1].strip()}", "the file is damaged") from error


def _rope_parameters(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """transformers 5's `rope_parameters` from `rope_theta` and `rope_scaling` {type, factor}.

    `dynamic` is plain below max_position_embeddings and takes another base above it.
    """
    theta = float(values["rope_theta"])
    scaling = values.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    given = dict(scaling) if isinstance(scaling, dict) else {}
    kind = given.pop("type", given.get("rope_type"))  # the old name and the new one
    match given:
        case {"factor": int() | float() as factor} if set(given) <= {"factor", "rope_type"}:
            if kind in ("dynamic", "linear") and given.get("rope_type", kind) == kind:
                return {"rope_type": kind, "rope_theta": theta, "factor": float(factor)}
    raise ConfigError(
        f"{where} has rope_scaling = {scaling}", "InternLM2's are {'type': 'dynamic' or 'linear', 'factor': ...}"
    )
