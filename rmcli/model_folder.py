"""The folder that ships: a plain transformers sequence classifier whose tokenizer renders what was trained on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from rmcli.errors import ConfigError, RmcliError
from rmcli.records import Conversation, as_dicts
from rmcli.tokenizer import RewardTokenizer

CONFIG_FILE = "rmcli.toml"  # the resolved configuration the model was trained with

_PROBE: Conversation = (
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
)


def reward_template(template: str, reward_token: str) -> str:
    """The chat template with the reward token after a finished assistant turn.

    Jinja drops one newline at the very end of a template; it must not come back when text follows.
    """
    return (
        template.removesuffix("\n")
        + "{% if messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
        + "{{ "
        + json.dumps(reward_token, ensure_ascii=False)
        + " }}"
        + "{% endif %}"
    )


def export(network: PreTrainedModel, reward: RewardTokenizer, toml: str, folder: Path) -> None:
    """Write `folder` beside and rename it. `toml` is the resolved configuration.

    Loads with AutoModelForSequenceClassification; the tokenizer's chat template ends with the reward token.
    Raises RmcliError when the exported tokenizer would give other ids than training used.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    tokenizer = reward.tokenizer
    trained_template = tokenizer.chat_template
    expected = _ids(tokenizer, _PROBE)
    if expected[-1:] != [reward.reward_token_id]:
        expected = [*expected, reward.reward_token_id]
        assert isinstance(trained_template, str)
        tokenizer.chat_template = reward_template(trained_template, reward.reward_token)
    before = (tokenizer.pad_token, tokenizer.truncation_side)
    try:
        if _ids(tokenizer, _PROBE) != expected:
            raise RmcliError(
                f"the chat template with {reward.reward_token} at its end gives other tokens than training used",
                "this template cannot be exported; please report it with the model's name",
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(reward.pad_token_id)
        tokenizer.truncation_side = "left"  # a cut reward token would be no score at all
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / CONFIG_FILE).write_text(toml, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise RmcliError(f"cannot write {folder}: {error.strerror or error}", "free some disk") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        tokenizer.chat_template = trained_template
        tokenizer.pad_token, tokenizer.truncation_side = before


def _ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    text = tokenizer.apply_chat_template(as_dicts(conversation), tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check(folder: Path) -> dict[str, Any]:
    """The config.json of a trained model folder. Raises when it is none, or has no reward token or head."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigError(f"model {folder}: no such folder", "give the model/ folder of a run")
    if not path.is_file():
        run = " (it is a run folder)" if (folder / "model").is_dir() else ""
        raise ConfigError(f"model {folder}: no config.json{run}", f"try {folder / 'model'}" if run else None)
    config = json.loads(path.read_text(encoding="utf-8"))
    if not any("ForSequenceClassification" in name for name in config.get("architectures") or []):
        raise ConfigError(
            f"model {folder} is {config.get('architectures')}, not a ...ForSequenceClassification",
            "only a trained reward model can score: rmcli train makes one",
        )
    return config


def state_of(network: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
