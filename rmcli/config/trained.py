"""What the config.json of a trained reward model says: that there is a head, and at which token it scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rmcli.config.files import read_json
from rmcli.config.layers import Layer, section_of

REWARD_ARCHITECTURE = "InternLM2ForRewardModel"  # InternLM's own, and what XTuner saves
_KINDS = ("ForSequenceClassification", REWARD_ARCHITECTURE)
# Of a folder that holds all it needs: what a preset says of its own backbone is not for it.
HERE = {
    "tokenizer_name_or_path": None,
    "chat_template": None,  # the folder's tokenizer carries it
    "revision": None,
    "random_weights": False,
}


def names_a_head(config: Mapping[str, Any]) -> bool:
    """Whether the architecture is one of a trained reward model."""
    named = config.get("architectures")
    return any(kind in str(name) for name in (named if isinstance(named, list) else ()) for kind in _KINDS)


def scored_at(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of [model] for the token at which the head was trained.

    Where config.json names none it was trained without: the score is that of the last token.
    """
    token_id = config.get("reward_token_id")
    mode = str(config.get("reward_mode", "last" if token_id is None else "reserved"))
    if mode in ("natural", "last"):
        return {"reward_token": mode, "reward_token_id": None}
    return {"reward_token": None, "reward_token_id": token_id}


def continued_layer(layers: Sequence[Layer]) -> Layer | None:
    """What the folder of a reward model says of itself, where one of these layers names it as the model to train.

    It lies over a preset, which speaks of its own backbone, and under what the user asks for; who names a reward
    token names it whole. The head's rate is that of all weights: a preset's `train.head_lr` is for one that begins
    at zero.
    """
    sections = [section_of(layer, "model") for layer in layers]
    named = [section.get("pretrained_model_name_or_path") for section in sections]
    given = next((name for name in reversed(named) if isinstance(name, str)), None)
    path = None if given is None else Path(given).expanduser() / "config.json"
    if path is None or not path.is_file():
        return None
    config = read_json(path)
    if not names_a_head(config):
        return None
    has_token = any(section.keys() & {"reward_token", "reward_token_id"} for section in sections)
    token = {} if has_token else scored_at(config)
    return Layer(str(path), {"model": {**HERE, **token}, "train": {"head_lr": None}}, explicit=False)
