"""InternLM2's tokenizer files as a fast tokenizer with the same ids."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.backbones.internlm2.bpe import sentencepiece_to_fast
from rmcli.backbones.internlm2.files import find_file, read_json_object
from rmcli.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

# What the published tokenizer classes take where tokenizer_config.json is silent.
_DEFAULT_SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


# --- the tokenizer ---


def load_sentencepiece_tokenizer(location: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """A fast tokenizer from tokenizer.model, tokenizer_config.json and, where there is one, chat_template.jinja.

    Ids are SentencePiece's. Special tokens cut the text first, as in the published tokenizer, and each piece of text
    between them is encoded for itself. Raises ConfigError for a missing package or file, and for a tokenizer.model
    whose ids could not be given exactly.
    """
    from transformers import PreTrainedTokenizerFast

    name = location["pretrained_model_name_or_path"]
    model_file = find_file(location, "tokenizer.model")
    if model_file is None:
        raise ConfigError(
            f"{name} has neither tokenizer.json nor tokenizer.model",
            "give another: -s model.tokenizer_name_or_path=PATH",
        )
    settings = read_json_object(location, "special_tokens_map.json") | read_json_object(
        location, "tokenizer_config.json"
    )
    special = {key: _content(settings.get(key, default)) for key, default in _DEFAULT_SPECIAL_TOKENS.items()}
    extra = [_content(token) for token in settings.get("additional_special_tokens") or []]
    added = _added_tokens(settings, read_json_object(location, "added_tokens.json"), name)
    renamed = {index: token.content for index, token in added.items()}
    backend = sentencepiece_to_fast(model_file, renamed)
    _add_tokens(backend, added, [token for token in (*special.values(), *extra) if token], model_file)
    template_file = find_file(location, "chat_template.jinja")
    template = template_file.read_text(encoding="utf-8") if template_file else settings.get("chat_template")
    kept = {key: settings[key] for key in ("model_max_length", "padding_side", "truncation_side") if key in settings}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=name,
        chat_template=template,
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=settings.get("add_eos_token", False),
        clean_up_tokenization_spaces=settings.get("clean_up_tokenization_spaces", False),
        extra_special_tokens=extra,
        **special,
        **kept,
    )


def _content(token: Any) -> str | None:
    """A special token's text: files hold it bare or as an object."""
    return token["content"] if isinstance(token, dict) else token


def _added_tokens(
    settings: Mapping[str, Any], added_tokens_json: Mapping[str, int], name: str
) -> "dict[int, AddedToken]":
    """The tokens a folder adds to, or renames in, its SentencePiece model, by id."""
    from tokenizers import AddedToken

    listed: dict[int, dict[str, Any]] = {index: {"content": text} for text, index in added_tokens_json.items()}
    for index, token in (settings.get("added_tokens_decoder") or {}).items():
        if not str(index).isdigit() or not isinstance(token, dict) or "content" not in token:
            raise ConfigError(f"tokenizer_config.json of {name}: added_tokens_decoder[{index!r}] is {token!r}")
        listed[int(index)] = token
    return {
        index: AddedToken(
            token["content"],
            lstrip=token.get("lstrip", False),
            rstrip=token.get("rstrip", False),
            single_word=token.get("single_word", False),
            special=token.get("special", True),
            # The published tokenizer finds them in the text as it is, never in a normalised one.
            normalized=False,
        )
        for index, token in sorted(listed.items())
    }


def _add_tokens(
    backend: "Tokenizer", added: "Mapping[int, AddedToken]", special: Iterable[str], model_file: Path
) -> None:
    """Have the tokens found in texts, each at the id its folder gives it. Raises ConfigError when that is not to be
    had."""
    from tokenizers import AddedToken

    known = {token.content for token in added.values()}
    extra = [AddedToken(text, special=True, normalized=False) for text in dict.fromkeys(special) if text not in known]
    backend.add_tokens([*added.values(), *extra])
    for index, token in added.items():
        if backend.token_to_id(token.content) != index:
            raise ConfigError(
                f"tokenizer_config.json gives {token.content!r} the id {index}, but beside {model_file} it is "
                f"{backend.token_to_id(token.content)}",
                "both files must be of one model",
            )
