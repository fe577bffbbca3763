"""How many positions a backbone has: `data.max_length` must not be above them.

Learned positions end in a lookup error; rotary ones past what was trained give scores without meaning, in silence.
"""

from transformers import PreTrainedConfig

from rmcli import output
from rmcli.config.layers import Layer, Resolved
from rmcli.config.resolve import relayer
from rmcli.errors import ConfigError

# Kinds of rope scaling whose factor stretches the positions that the config counts. Others (llama3, longrope) name
# the stretched number themselves.
STRETCHING_ROPE = {"linear", "dynamic", "yarn"}
# They name a number all the same, but state carries the order: text models without positions, or with ALiBi.
WITHOUT_POSITIONS = {"bloom", "jamba", "kimi_linear", "mpt", "nemotron_h", "zamba"}


def num_positions(config: PreTrainedConfig) -> int | None:
    """Tokens that one conversation may have; None where nothing bounds them."""
    text = config.get_text_config()
    counted = getattr(text, "max_position_embeddings", None)
    if not isinstance(counted, int) or counted < 1 or text.model_type in WITHOUT_POSITIONS:
        return None
    if getattr(text, "alibi", False) or getattr(text, "position_embedding_type", None) in ("nope", "alibi"):
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in STRETCHING_ROPE:  # Gemma-3's, one per layer type, is counted in already
        before = rope.get("original_max_position_embeddings") or counted
        return max(counted, int(before * (rope.get("factor") or 1)))
    return counted


def within_positions(resolved: Resolved, config: PreTrainedConfig) -> Resolved:
    """The configuration, once its data.max_length is within the backbone's positions.

    The default, which nobody has chosen, is lowered to them, which is said. Raises ConfigError for any other above.
    """
    limit, max_length = num_positions(config), resolved.config.data.max_length
    if limit is None or max_length <= limit:
        return resolved
    if resolved.origins.get("data.max_length", "default") != "default":
        check_max_length(config, max_length, resolved.config.model.pretrained_model_name_or_path)
    output.say(f"data.max_length = {limit:,}: the model has no more positions")
    return relayer(resolved, Layer("the model's positions", {"data": {"max_length": limit}}))


def check_max_length(config: PreTrainedConfig, max_length: int, name: str | None) -> None:
    """Raise ConfigError where a conversation of `max_length` tokens has more than the backbone's positions."""
    limit = num_positions(config)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"data.max_length = {max_length:,} is above the {limit:,} positions of {name}",
            f"prepare, train and score with -s data.max_length={limit}, or choose a model with a longer context",
        )
