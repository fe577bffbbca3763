"""The tokenizer and its reward token: found by name, checked by id, never resized in silence."""

import copy
import functools
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmcli import output
from rmcli.backbones.adapter_files import base_of, is_adapter_folder
from rmcli.backbones.internlm2.auto import AutoConfig, AutoTokenizer
from rmcli.backbones.pretrained import check_config, from_pretrained
from rmcli.config.presets import preset_reward_tokens, pretrained_arguments
from rmcli.config.sections import ModelSection
from rmcli.errors import ConfigError
from rmcli.tokens import chat_templates, evidence

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

NATURAL = "natural"  # model.reward_token: the template's own end-of-turn token
LAST = "last"  # model.reward_token: whatever token the template ends with, as reward models without one are scored
_LOADERS = {"config": AutoConfig, "tokenizer": AutoTokenizer}
NUM_CANDIDATES = 3  # named in place of a token that cannot be
ROWS_MULTIPLE = 64  # rows of a grown embedding: a size that kernels like
CHAT_TEMPLATE_HINT = chat_templates.HINT


@dataclass(frozen=True)
class RewardTokenizer:
    """A tokenizer and the token whose hidden state is scored.

    `mode`: reserved (an unused token appended to each conversation), natural (the template's own end-of-turn token)
    or last (what a rendered conversation ends with; `reward_token` is that of a plain one). `num_embedding_rows` is
    the model's; it may exceed len(tokenizer). Where a new token found no row it is what the embedding has to grow to,
    and `grown_from` what it has. `added`: the token was new and took the next id.
    `is_ordinary`: a word of the language, which model.allow_ordinary_reward_token let pass.
    """

    tokenizer: "PreTrainedTokenizerBase"
    reward_token: str
    reward_token_id: int
    num_embedding_rows: int
    added: bool = False
    mode: str = "reserved"
    grown_from: int | None = None
    is_ordinary: bool = False

    @cached_property
    def tokens_without_row(self) -> tuple[int, ...]:
        """Ids of the tokenizer that lie past the end of the embedding, as Gemma-3's image token does."""
        ids = set(self.tokenizer.get_vocab().values())
        return tuple(sorted(index for index in ids if index >= self.num_embedding_rows))

    @property
    def pad_token_id(self) -> int:
        """An id to pad with: the tokenizer's own, else another special token. Never the reward token.

        Only special tokens: as a pad token any other would be cut out of the text it occurs in.
        """
        tokenizer = self.tokenizer
        special = sorted(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
        candidates = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
        for candidate in (*candidates, *special):
            if not isinstance(candidate, int) or candidate >= self.num_embedding_rows:  # some lie past the rows
                continue
            if candidate != self.reward_token_id:
                return candidate
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path} has no special token to pad with but {self.reward_token}",
            "choose another reward token",
        )

    def finish(self, ids: np.ndarray) -> np.ndarray | None:
        """(tokens,) ids of a rendered conversation so that they end at the reward position; None when none is there.

        Reserved: the rendered tail is kept and the token appended by id, unless an exported template has written it.
        Natural: the tail after the last end-of-turn token is cut. Last: as it is rendered.
        """
        if self.mode == LAST:
            return ids if len(ids) else None
        if self.mode == "natural":
            found = np.flatnonzero(ids == self.reward_token_id)
            return ids[: found[-1] + 1] if len(found) else None
        if len(ids) and ids[-1] == self.reward_token_id:
            return ids
        return np.concatenate([ids, np.array([self.reward_token_id], dtype=ids.dtype)])

    def stands_in(self, text: str) -> bool:
        """Whether a text holds the token that only the end of a conversation may."""
        return self.mode != LAST and self.reward_token in text

    def stands_within(self, ids: np.ndarray) -> bool:
        """Whether a reserved token stands before the end of (tokens,) ids: it came from the text."""
        return self.mode == "reserved" and bool((ids[:-1] == self.reward_token_id).any())

    def fingerprint(self) -> dict[str, str]:
        """sha256 of the vocabulary with its rules, and of the chat template: what prepared ids depend on."""
        return {
            "tokenizer_sha256": _sha256(json.dumps(self.rules(), sort_keys=True)),
            "chat_template_sha256": _sha256(str(self.tokenizer.chat_template)),
        }

    def rules(self) -> dict[str, Any]:
        """The vocabulary and how text is cut to it, as in tokenizer.json; of a slow one the vocabulary alone."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self.tokenizer.get_vocab()
        description = json.loads(backend.to_str())
        description.pop("padding", None)
        description.pop("truncation", None)
        return description


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def load_model_config(model: ModelSection) -> "PreTrainedConfig":
    """The architecture's config, without weights. InternLM2's comes as the Llama config that computes the same.

    Raises RmcliError for what cannot be loaded, for a size that is none, and for quantized weights.
    """
    name = model.pretrained_model_name_or_path
    if name is None:
        raise ConfigError(
            "model.pretrained_model_name_or_path is not set",
            "choose a preset (-p) or give -s model.pretrained_model_name_or_path=PATH",
        )
    if is_adapter_folder(name) and not Path(name, "config.json").is_file():
        return load_model_config(model.model_copy(update=base_of(name)))
    config = _load_small("config", name, pretrained_arguments(name, model.revision))
    check_config(config, name)
    return config


def _load_small(what: str, name: str, arguments: dict[str, str]) -> Any:
    """The "config" or the "tokenizer", out of a .gguf file once: transformers walks its vocabulary for seconds."""
    if "gguf_file" not in arguments:
        return from_pretrained(_LOADERS[what], what, name, arguments)
    path = Path(arguments["pretrained_model_name_or_path"], arguments["gguf_file"])
    return copy.deepcopy(_load_from_gguf(what, name, path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _load_from_gguf(what: str, name: str, path: Path, _changed: int) -> Any:
    arguments = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return from_pretrained(_LOADERS[what], what, name, arguments)


def load_bare_tokenizer(model: ModelSection) -> "PreTrainedTokenizerBase":
    """The tokenizer alone, without a reward token."""
    name = model.tokenizer_name_or_path or model.pretrained_model_name_or_path
    assert name is not None  # load_model_config has refused it
    own = name == model.pretrained_model_name_or_path  # the revision is the model's
    tokenizer = _load_small("tokenizer", name, pretrained_arguments(name, model.revision if own else None))
    if model.chat_template is not None:
        tokenizer.chat_template = chat_templates.load(model.chat_template, tokenizer)
    elif isinstance(tokenizer.chat_template, str):  # a byte order mark is no part of the file that it came from
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")
    return tokenizer


def load_tokenizer(model: ModelSection) -> RewardTokenizer:
    """The tokenizer of the configured model with its reward token resolved and checked.

    Raises ConfigError when the token is not set, unknown, of another id, outside the embedding, or in other use.
    """
    output.doing(f"loading the tokenizer of {model.pretrained_model_name_or_path}")
    config = load_model_config(model)
    tokenizer = load_bare_tokenizer(model)
    bos = getattr(config, "reward_bos_token_id", None)
    if bos is not None and tokenizer.bos_token is None and model.tokenizer_name_or_path is None:
        tokenizer.bos_token = _token_of(tokenizer, bos)  # an exported one declares none
    return resolve_reward_token(tokenizer, model, config.get_text_config().vocab_size, config)


def resolve_reward_token(
    tokenizer: "PreTrainedTokenizerBase",
    model: ModelSection,
    num_embedding_rows: int,
    config: "PreTrainedConfig | None" = None,
) -> RewardTokenizer:
    """Resolve by name, then check the id (facts: 128002 is reserved in Llama-3 and `<think>` in SmolLM3).

    `config`: the model's; the reward token that it was trained with is taken whatever it is.
    """
    name = model.tokenizer_name_or_path or model.pretrained_model_name_or_path
    token, token_id = model.reward_token, model.reward_token_id
    find = f"find one: rmcli inspect-token {name}"
    if token is None and token_id is None:
        raise ConfigError("model.reward_token is not set", find)
    if token == NATURAL:
        return _resolve_natural(tokenizer, token_id, name, num_embedding_rows)
    if token == LAST:
        return _resolve_last(tokenizer, token_id, num_embedding_rows)
    added = token is not None and token not in tokenizer.get_vocab()
    if token_id is not None and token_id >= num_embedding_rows and not (added and token_id == len(tokenizer)):
        raise ConfigError(
            f"model.reward_token_id = {token_id} is out of range: {name} has {num_embedding_rows} embedding rows",
            find,
        )
    if token is None:
        assert token_id is not None
        token = _token_of(tokenizer, token_id)
        if token is None:
            raise ConfigError(
                f"model.reward_token_id = {token_id} has no token in the tokenizer of {name}",
                f"name it to use this spare row: -s model.reward_token='<|reward|>' (the first is {len(tokenizer)})",
            )
    elif added:
        if token_id is None or token_id != len(tokenizer):
            raise ConfigError(f"model.reward_token = {token!r} is not in the tokenizer of {name}", find)
        tokenizer.add_tokens([token], special_tokens=True)
    found = tokenizer.get_vocab()[token]
    if token_id is not None and found != token_id:
        raise ConfigError(
            f"model.reward_token_id = {token_id} is {_token_of(tokenizer, token_id)!r} in the tokenizer of {name}, "
            f"and {token!r} is {found}",
            f"set one of them right: model.reward_token_id = {found}",
        )
    grown_from = None
    if added and found >= num_embedding_rows:  # train grows the embedding and says so
        grown_from = num_embedding_rows
        num_embedding_rows = -(-(found + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    if found >= num_embedding_rows:
        raise ConfigError(
            f"model.reward_token = {token!r} is id {found}, out of range: {name} has {num_embedding_rows} "
            "embedding rows",
            find,
        )
    for use in ("pad", "bos", "eos", "unk"):
        if found == getattr(tokenizer, f"{use}_token_id"):
            raise ConfigError(f"model.reward_token = {token!r} (id {found}) is the {use} token of {name}", find)
    is_ordinary = not evidence.is_set_aside(tokenizer, found)
    was_trained = found == getattr(config, "reward_token_id", None)
    if is_ordinary and not model.allow_ordinary_reward_token and not was_trained:
        raise _ordinary_word(tokenizer, token, found, name, num_embedding_rows, config)
    return RewardTokenizer(
        tokenizer, token, found, num_embedding_rows, added, grown_from=grown_from, is_ordinary=is_ordinary
    )


def _ordinary_word(
    tokenizer: "PreTrainedTokenizerBase",
    token: str,
    token_id: int,
    name: str | None,
    num_rows: int,
    config: "PreTrainedConfig | None",
) -> ConfigError:
    """The refusal of a reward token that texts are written with, naming the first ones that none is."""
    uses = {} if config is None else evidence.uses_named_in("config", config.to_dict())
    ranked = evidence.rank(evidence.gather(tokenizer, num_rows, uses, preset_reward_tokens()))
    better = ", ".join(f"{one.token or evidence.NEW_TOKEN} ({one.id})" for one in ranked[:NUM_CANDIDATES])
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    return ConfigError(
        f"model.reward_token_id = {token_id} ({token!r}, the text {text!r}) is an ordinary word of the tokenizer of "
        f"{name}: no special, added or reserved token",
        f"candidates: {better} (rmcli inspect-token {name}); -s model.allow_ordinary_reward_token=true takes "
        "the word all the same: rows whose text holds it are then lost",
    )


def _resolve_natural(
    tokenizer: "PreTrainedTokenizerBase", token_id: int | None, name: str | None, num_embedding_rows: int
) -> RewardTokenizer:
    """The template's end-of-turn token: the first special token it writes after an assistant's reply."""
    found = end_of_turn_id(tokenizer)
    if found is None:
        raise ConfigError(
            f"the chat template of {name} writes no special token after a reply: there is no natural reward token",
            f"use an unused token: rmcli inspect-token {name}",
        )
    token = _token_of(tokenizer, found)
    assert token is not None  # the tokenizer has just given this id
    if token_id is not None and token_id != found:
        raise ConfigError(
            f"model.reward_token_id = {token_id}, but the end-of-turn token of {name} is {token!r} ({found})",
            "leave reward_token_id out with reward_token = 'natural', or clear the preset's: "
            "-s model.reward_token_id=none",
        )
    if found >= num_embedding_rows:
        raise ConfigError(f"the end-of-turn token {token!r} ({found}) of {name} has no embedding row")
    return RewardTokenizer(tokenizer, token, found, num_embedding_rows, mode=NATURAL)


def _resolve_last(
    tokenizer: "PreTrainedTokenizerBase", token_id: int | None, num_embedding_rows: int
) -> RewardTokenizer:
    """The token that the template ends a plain question and answer with."""
    if token_id is not None:
        raise ConfigError(
            f"model.reward_token_id = {token_id}, but model.reward_token = 'last' is whatever token comes last",
            "leave reward_token_id out: -s model.reward_token_id=none",
        )
    if tokenizer.chat_template is None:
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template", CHAT_TEMPLATE_HINT)
    talk = [{"role": "user", "content": "The capital of France?"}, {"role": "assistant", "content": "Paris"}]
    found = tokenizer(_rendered(tokenizer, talk), add_special_tokens=False)["input_ids"][-1]
    token = _token_of(tokenizer, found)
    assert token is not None  # the tokenizer has just given this id
    return RewardTokenizer(tokenizer, token, found, num_embedding_rows, mode=LAST)


def end_of_turn_id(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Found by rendering: the first special token after the reply of a finished assistant turn."""
    if tokenizer.chat_template is None:
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template", CHAT_TEMPLATE_HINT)
    replies = ("Paris", "Madrid")  # plain letters: any tokenizer can write them
    first = [{"role": "user", "content": "The capital of France?"}, {"role": "assistant", "content": replies[0]}]
    second = [{"role": "user", "content": "And of Spain?"}, {"role": "assistant", "content": replies[1]}]
    texts = [_rendered(tokenizer, first), _rendered(tokenizer, [*first, *second])]
    tails = [text.rpartition(reply)[2] for text, reply in zip(texts, replies, strict=True)]
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = []
    for tail in tails:
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        ends.append(next((index for index in ids if index in special), None))
    # A last turn that ends otherwise than an earlier one would be scored before its reply.
    return ends[0] if len(set(ends)) == 1 else None


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str:
    """The conversation in the chat template's words. Raises ConfigError when it refuses or alters it."""
    from jinja2.exceptions import TemplateError

    try:
        text = chat_templates.render(tokenizer, messages)
    except TemplateError as error:
        refusal = f"the chat template of {tokenizer.name_or_path} refuses a plain question and answer: {error}"
        raise ConfigError(refusal, CHAT_TEMPLATE_HINT) from error
    if messages[-1]["content"] not in text:
        raise ConfigError(
            f"the chat template of {tokenizer.name_or_path} does not write the assistant's reply as it is",
            CHAT_TEMPLATE_HINT,
        )
    return text


def _token_of(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str | None:
    if token_id >= len(tokenizer):
        return None
    token = tokenizer.convert_ids_to_tokens(token_id)
    return token if isinstance(token, str) else None


def decoded(tokenizer: Any, ids: np.ndarray) -> str:
    """The text of (tokens,) ids as it was written: special tokens and all spaces."""
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
