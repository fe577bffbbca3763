"""What config.json must say so that every loader reads the score, and the score alone."""

from collections.abc import Mapping
from typing import Any


def config_fault(config: Mapping[str, Any]) -> str | None:
    """The first thing that would give a loader another number; None where there is none."""
    text = config.get("text_config") or {}
    pad = text.get("pad_token_id", config.get("pad_token_id"))
    reward = config.get("reward_token_id")
    labels = config.get("id2label") or {}
    if pad is None:
        return "no pad_token_id: batches of more than one cannot be scored"
    if pad == reward:
        return f"pad_token_id is the reward token ({reward}): it would be scored one token earlier"
    if len(labels) != 1:
        return f"{len(labels)} labels in id2label: a reward model has one output"
    if config.get("problem_type") != "regression":
        return f"problem_type is {config.get('problem_type')!r}: pipelines would return a sigmoid of the score"
    if config.get("auto_map"):
        return "auto_map names code: loaders would ask for it to be run"
    return None
