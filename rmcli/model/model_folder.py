"""The folder that ships: a plain transformers sequence classifier whose tokenizer renders what was trained on."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from rmcli.backbones.internlm2.auto import REWARD_ARCHITECTURE
from rmcli.backbones.pretrained import refuse_adapter
from rmcli.config.files import read_json
from rmcli.errors import ConfigError, RmcliError
from rmcli.model.hashes import CONFIG_FILE, write_hashes
from rmcli.model.shipped_tokenizer import save_tokenizer
from rmcli.records import Conversation, Message, as_dicts
from rmcli.tokens import chat_templates
from rmcli.tokens.tokenizer import RewardTokenizer

# What is no tensor in a checkpoint; in one of an earlier rmcli, which was pickled.
OF_CHECKPOINT, OF_OLD_CHECKPOINT = "checkpoint.json", ".metadata"

# What the exported template is compared on; a template may refuse some (no system role, say), not all.
_USER, _ASSISTANT = {"role": "user", "content": " What is 2 + 2?"}, {"role": "assistant", "content": "4\n"}
_PROBES: tuple[Conversation, ...] = tuple(
    tuple(Message(role=message["role"], content=message["content"]) for message in conversation)
    for conversation in (
        [_USER, _ASSISTANT],
        [_USER, _ASSISTANT, _USER, _ASSISTANT],
        [{"role": "system", "content": "Answer."}, _USER, _ASSISTANT],
    )
)


def reward_template(template: str, reward: RewardTokenizer) -> str:
    """The chat template so that a finished assistant turn ends at the reward position.

    Reserved mode writes the reward token after it; natural mode cuts what follows the last end-of-turn token.
    """
    token = json.dumps(reward.reward_token, ensure_ascii=False)
    finished = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
    # Jinja drops one newline at the very end of a template; it must not come back when text follows.
    base = template.removesuffix("\n")
    if reward.mode == "natural":
        return (
            "{% set conversation %}" + base + "{% endset %}"
            f"{{% if {finished} and {token} in conversation %}}"
            f"{{{{ conversation.rsplit({token}, 1)[0] + {token} }}}}"
            "{% else %}{{ conversation }}{% endif %}"
        )
    return base + f"{{% if {finished} %}}{{{{ {token} }}}}{{% endif %}}"


def exported_template(reward: RewardTokenizer) -> str:
    """The chat template to ship, checked to give the ids that training used.

    Raises RmcliError when it does not, which is known before a long run as well as after it.
    """
    tokenizer = reward.tokenizer
    trained = tokenizer.chat_template
    assert isinstance(trained, str)  # encoding has refused a tokenizer without one
    rendered = [_ids(tokenizer, probe) for probe in _PROBES]
    expected = [_finish(reward, ids) for ids in rendered]
    if rendered == expected and any(rendered):
        return trained  # goes on from an exported model, or the template ends at its end-of-turn token
    shipped = reward_template(trained, reward)
    try:
        tokenizer.chat_template = shipped
        actual = [_ids(tokenizer, probe) for probe in _PROBES]
    finally:
        tokenizer.chat_template = trained
    if actual != expected or not any(expected):
        raise RmcliError(
            f"the chat template with {reward.reward_token} at its end gives other tokens than training would use",
            "this template cannot be exported; please report it with the model's name",
        )
    return shipped


def _finish(reward: RewardTokenizer, ids: list[int]) -> list[int] | None:
    """What training uses of a rendered conversation; none of what the template refused."""
    finished = reward.finish(np.array(ids)) if ids else np.empty(0, dtype=np.int64)
    return None if finished is None else finished.tolist()


def _ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Token ids of the rendered conversation; none when the template refuses it."""
    try:
        text = chat_templates.render(tokenizer, as_dicts(conversation))
    except TemplateError:
        return []
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def export(
    network: PreTrainedModel,
    reward: RewardTokenizer,
    toml: str,
    folder: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write `folder` beside and rename it. `toml` is the resolved configuration.

    `weights` is the whole state dict of a network that is cut over processes. Loads with
    AutoModelForSequenceClassification; the tokenizer's chat template ends with the reward token. The files are proven
    by the hashes in rmcli.sha256. Raises RmcliError, and leaves nothing, where it cannot be written.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    template = exported_template(reward)
    try:
        network.save_pretrained(temporary, state_dict=weights)
        save_tokenizer(reward, template, temporary)
        (temporary / CONFIG_FILE).write_text(toml, encoding="utf-8")
        mode = (temporary / CONFIG_FILE).stat().st_mode & 0o777
        for path in filter(Path.is_file, temporary.rglob("*")):
            path.chmod(mode)  # safetensors gives its files to their owner alone, whatever the umask
        write_hashes(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RmcliError(
            f"cannot write {folder}: {reason} (its weights have {num_bytes:,} bytes)", "is the disk full?"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check(folder: Path) -> dict[str, Any]:
    """The config.json of a trained model folder. Raises when it is none, or has no reward token or head."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigError(f"model {folder}: no such folder", "give the model/ folder of a run")
    if any((folder / name).is_file() for name in (OF_CHECKPOINT, OF_OLD_CHECKPOINT)):
        shipped = folder.absolute().parent.parent / "model"
        raise ConfigError(
            f"model {folder} is a checkpoint (weights, optimizer and step), not a model folder",
            f"try {shipped}" if shipped.is_dir() else "docs/runs.md makes a model folder of it",
        )
    refuse_adapter(folder, f"model {folder}")
    if not path.is_file():
        run = " (it is a run folder)" if (folder / "model").is_dir() else ""
        raise ConfigError(f"model {folder}: no config.json{run}", f"try {folder / 'model'}" if run else None)
    config = read_json(path)
    kinds = ("ForSequenceClassification", REWARD_ARCHITECTURE)
    if not any(kind in name for name in config.get("architectures") or [] for kind in kinds):
        raise ConfigError(
            f"model {folder} is {config.get('architectures')}, not a ...ForSequenceClassification",
            "only a trained reward model can score: rmcli train makes one",
        )
    return config
