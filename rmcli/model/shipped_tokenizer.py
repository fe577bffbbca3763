"""The tokenizer that ships: it writes what training wrote, asked with add_special_tokens or without."""

import copy
import json
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.backbones.internlm2.auto import AutoTokenizer
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.files import read_json
from rmcli.tokens.tokenizer import RewardTokenizer

_SETS_BOS = "{% set bos_token = "
_ADDING = {"TemplateProcessing", "BertProcessing"}


def save_tokenizer(reward: RewardTokenizer, chat_template: str, folder: Path) -> None:
    """Write a copy of the tokenizer with this template, which adds no special token of its own and cuts on the left.

    Training encodes the rendered conversation as it is, BOS included where the template writes one. A tokenizer that
    adds BOS by itself would write it twice in an ordinary `tokenizer(text)` or `pipeline(text)`: another score.
    """
    tokenizer = copy.deepcopy(reward.tokenizer)
    tokenizer.chat_template = chat_template
    _declare_no_bos(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(reward.pad_token_id)
    tokenizer.truncation_side = "left"  # a cut reward token would be no score at all
    tokenizer.init_kwargs["truncation_side"] = "left"  # what is written is taken from there
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        _add_nothing(tokenizer)
    write_tokenizer(tokenizer, folder)
    _prove(reward, folder)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer so that it loads as it is here, and without code of its own."""
    tokenizer.init_kwargs.pop("auto_map", None)
    tokenizer.save_pretrained(folder)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        # tokenizer.json says it all. A class of its own, such as Llama's, would build another from parts of it, as
        # for Llama 2, which then lost the space before a text that follows BOS.
        path = folder / "tokenizer_config.json"
        values = read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _prove(reward: RewardTokenizer, folder: Path) -> None:
    """Say so when the written tokenizer, loaded as everybody loads it, gives other tokens than training used."""
    written = from_pretrained(AutoTokenizer, "tokenizer", str(folder), {"pretrained_model_name_or_path": str(folder)})
    bos = reward.tokenizer.bos_token or ""
    for text in (f"{bos}What is 2 + 2?\n 4{reward.reward_token}", "Ärger, <b>zwölf</b>\tWorte  "):
        trained = reward.tokenizer(text, add_special_tokens=False)["input_ids"]
        if written(text)["input_ids"] != trained or written(text, add_special_tokens=False)["input_ids"] != trained:
            output.warn(
                f"the exported tokenizer gives other tokens than training used, of {text!r}: its scores differ"
            )
            return


def _declare_no_bos(tokenizer: Any) -> None:
    """The template alone writes BOS, by its text.

    Who knows of a BOS cuts it off a rendered text, as tokenizers mostly add it again (verl, the recipes of many model
    cards), or puts it before one without (NeMo-RL): other scores, both.
    """
    if tokenizer.bos_token is None:
        return
    if "bos_token" in tokenizer.chat_template and _SETS_BOS not in tokenizer.chat_template:
        text = json.dumps(tokenizer.bos_token, ensure_ascii=False)
        # An output ends it: a line break after a block would be swallowed.
        tokenizer.chat_template = _SETS_BOS + f"{text} %}}{{{{ '' }}}}" + tokenizer.chat_template
    tokenizer.bos_token = None
    tokenizer.init_kwargs["bos_token"] = None


def _add_nothing(tokenizer: Any) -> None:
    """Take the special tokens out of what the tokenizer does with encoded text; offsets stay as they were."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
    if backend is not None:
        description = json.loads(backend.to_str())
        description["post_processor"] = without_special_tokens(description["post_processor"])
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(description))


def without_special_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json that adds nothing to encoded text; None where nothing is left of it."""
    if processor is None or processor["type"] in _ADDING:
        return None
    if processor["type"] == "RobertaProcessing":  # ByteLevel's trimming of offsets, and special tokens
        kept = {key: processor[key] for key in ("add_prefix_space", "trim_offsets")}
        return {"type": "ByteLevel", **kept, "use_regex": True}
    if processor["type"] == "Sequence":
        inner = [part for part in map(without_special_tokens, processor["processors"]) if part is not None]
        return {"type": "Sequence", "processors": inner} if inner else None
    return processor
