"""The tokenizer and its reward token: found by name, checked by id, never resized in silence."""

import difflib
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import hub, internlm2
from rmcli.config import ModelSection, preset_names, pretrained_arguments
from rmcli.errors import ConfigError, RmcliError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class RewardTokenizer:
    """A tokenizer and the token whose hidden state is scored.

    `num_embedding_rows` is the model's; it may exceed len(tokenizer). `added` is true when the token was new and
    took the first spare row.
    """

    tokenizer: "PreTrainedTokenizerBase"
    reward_token: str
    reward_token_id: int
    num_embedding_rows: int
    added: bool = False

    @property
    def pad_token_id(self) -> int:
        """An id to pad with: the tokenizer's own, else its eos, else 0. Never the reward token."""
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if isinstance(candidate, int) and candidate != self.reward_token_id:
                return candidate
        return 0 if self.reward_token_id != 0 else 1

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the vocabulary with its rules, and of the chat template: what prepared ids depend on."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            description = json.loads(backend.to_str())
            description.pop("padding", None)
            description.pop("truncation", None)
        else:
            description = self.tokenizer.get_vocab()
        return {
            "tokenizer_sha256": _sha256(json.dumps(description, sort_keys=True)),
            "chat_template_sha256": _sha256(str(self.tokenizer.chat_template)),
        }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def from_pretrained(loader: Any, what: str, name: str, arguments: dict[str, Any]) -> Any:
    """`loader.from_pretrained(**arguments)`, whose many failures become one line with the model and a way out."""
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)  # load reports: what matters in them we say ourselves
    transformers_logging.disable_progress_bar()
    try:
        if Path(arguments["pretrained_model_name_or_path"]).is_dir():
            return loader.from_pretrained(**arguments)
        with hub.asking():
            return loader.from_pretrained(**arguments)
    except ImportError as error:
        raise RmcliError(
            f"the {what} of {name} needs a package: {_first_line(error)}",
            "for .gguf files: pip install 'rmcli[gguf]'",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RmcliError(
            f"cannot load the {what} of {name}: {_first_line(error)}",
            _way_out(name),
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def _way_out(name: str) -> str:
    if name in preset_names() or Path(name).exists():
        return "give a whole model folder: config.json, weights and tokenizer"
    close = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.7)
    return (f"did you mean the preset {close[0]}? Else " if close else "") + (
        "check the name and your access (hf auth login), or give a local folder or .gguf file: "
        "-s model.pretrained_model_name_or_path=PATH"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def load_model_config(model: ModelSection) -> "PreTrainedConfig":
    """The architecture's config, without weights. InternLM2's comes as the Llama config that computes the same."""
    name = model.pretrained_model_name_or_path
    if name is None:
        raise ConfigError(
            "model.pretrained_model_name_or_path is not set",
            "choose a preset (-p) or give -s model.pretrained_model_name_or_path=PATH",
        )
    return from_pretrained(internlm2.AutoConfig, "config", name, pretrained_arguments(name, model.revision))


def load_bare_tokenizer(model: ModelSection) -> "PreTrainedTokenizerBase":
    """The tokenizer alone, without a reward token."""
    name = model.tokenizer_name_or_path or model.pretrained_model_name_or_path
    assert name is not None  # load_model_config has refused it
    own = name == model.pretrained_model_name_or_path  # the revision is the model's
    return from_pretrained(
        internlm2.AutoTokenizer, "tokenizer", name, pretrained_arguments(name, model.revision if own else None)
    )


def load_tokenizer(model: ModelSection) -> RewardTokenizer:
    """The tokenizer of the configured model with its reward token resolved and checked.

    Raises ConfigError when the token is not set, unknown, of another id, outside the embedding, or in other use.
    """
    num_rows = load_model_config(model).get_text_config().vocab_size
    return resolve_reward_token(load_bare_tokenizer(model), model, num_rows)


def resolve_reward_token(
    tokenizer: "PreTrainedTokenizerBase", model: ModelSection, num_embedding_rows: int
) -> RewardTokenizer:
    """Resolve by name, then check the id (facts: 128002 is reserved in Llama-3 and `<think>` in SmolLM3)."""
    name = model.tokenizer_name_or_path or model.pretrained_model_name_or_path
    token, token_id = model.reward_token, model.reward_token_id
    find = f"find one: rmcli inspect-token {name}"
    if token is None and token_id is None:
        raise ConfigError("model.reward_token is not set", find)
    if token == "natural":
        raise ConfigError("model.reward_token = 'natural' (the end-of-turn token) is not built yet", find)
    if token_id is not None and token_id >= num_embedding_rows:
        raise ConfigError(
            f"model.reward_token_id = {token_id} is out of range: {name} has {num_embedding_rows} embedding rows",
            find,
        )
    added = False
    vocabulary = tokenizer.get_vocab()
    if token is None:
        assert token_id is not None
        token = _token_of(tokenizer, token_id)
        if token is None:
            raise ConfigError(
                f"model.reward_token_id = {token_id} has no token in the tokenizer of {name}",
                f"name it to use this spare row: -s model.reward_token='<|reward|>' (the first is {len(tokenizer)})",
            )
    elif token not in vocabulary:
        if token_id is None or token_id != len(tokenizer):
            raise ConfigError(f"model.reward_token = {token!r} is not in the tokenizer of {name}", find)
        tokenizer.add_tokens([token], special_tokens=True)
        vocabulary, added = tokenizer.get_vocab(), True
    found = vocabulary[token]
    if token_id is not None and found != token_id:
        raise ConfigError(
            f"model.reward_token_id = {token_id} is {_token_of(tokenizer, token_id)!r} in the tokenizer of {name}, "
            f"and {token!r} is {found}",
            f"set one of them right: model.reward_token_id = {found}",
        )
    if found >= num_embedding_rows:
        raise ConfigError(
            f"model.reward_token = {token!r} is id {found}, out of range: {name} has {num_embedding_rows} "
            "embedding rows",
            find,
        )
    for use in ("pad", "bos", "eos", "unk"):
        if found == getattr(tokenizer, f"{use}_token_id"):
            raise ConfigError(f"model.reward_token = {token!r} (id {found}) is the {use} token of {name}", find)
    return RewardTokenizer(tokenizer, token, found, num_embedding_rows, added)


def _token_of(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str | None:
    if token_id >= len(tokenizer):
        return None
    token = tokenizer.convert_ids_to_tokens(token_id)
    return token if isinstance(token, str) else None
