"""InternLM2's own checkpoint layout, read into transformers' Llama, which computes the same. No remote code is run.

Layout (InternLM's published modeling_internlm2.py and tokenization_internlm2.py): queries, keys and values of a layer
are fused in `attention.wqkv`, grouped by key/value head; the MLP is `feed_forward.w1` (gate), `w3` (up) and `w2`
(down); `output` is the language head, and reward models (InternLM2ForRewardModel) have `v_head` instead. The
tokenizer is a SentencePiece BPE model whose unused pieces tokenizer_config.json renames (to <|im_start|>, say).

The reward models XTuner saves, InternLM's own and POLAR share this layout: the score is `v_head` at the reward token,
config.json's `reward_token_id`, put at the end. POLAR compares with a reference: its input is the text
`prompt + reference <|split_token|> prompt + candidate <|reward|>`. No command composes that: who scores with POLAR
writes it himself as one message of the assistant, up to the candidate's end, under a chat template that adds nothing,
with `data.allow_no_prompt`.

`AutoConfig`, `AutoTokenizer` and `AutoSequenceClassifier` stand where transformers' own would: they read this layout
and pass everything else on, always with trust_remote_code=False. Heavy imports are inside functions, as in tokenizer,
which imports this file.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rmcli.backbones.internlm2.config import llama_config
from rmcli.backbones.internlm2.files import LOCATION, find_file, read_json_object
from rmcli.backbones.internlm2.tokenizer import load_sentencepiece_tokenizer
from rmcli.backbones.internlm2.weights import load_weights

if TYPE_CHECKING:
    pass

MODEL_TYPE = "internlm2"


class AutoConfig:
    """transformers' AutoConfig, which also takes an InternLM2 config.json."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        values = _own_config(arguments)
        if values is not None:
            return llama_config(values, arguments["pretrained_model_name_or_path"])
        return transformers.AutoConfig.from_pretrained(trust_remote_code=False, **arguments)


class AutoSequenceClassifier:
    """transformers' AutoModelForSequenceClassification, which also takes InternLM2's weights."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        if _own_config(arguments) is None:
            return transformers.AutoModelForSequenceClassification.from_pretrained(
                trust_remote_code=False, **arguments
            )
        return load_weights({key: arguments[key] for key in LOCATION if key in arguments})


class AutoTokenizer:
    """transformers' AutoTokenizer, which also takes InternLM2's: its tokenizer.json if there is one, else its
    tokenizer.model."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        if not _has_own_tokenizer(arguments):
            return transformers.AutoTokenizer.from_pretrained(trust_remote_code=False, **arguments)
        if find_file(arguments, "tokenizer.json") is None:
            return load_sentencepiece_tokenizer(arguments)
        # The class named in tokenizer_config.json is remote code; tokenizer.json says all that it would do.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(trust_remote_code=False, **arguments)
        tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer


def _own_config(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json's values when it is InternLM2's, else None."""
    if "gguf_file" in arguments:
        return None
    values = read_json_object(arguments, "config.json")
    return values if values.get("model_type") == MODEL_TYPE else None


def _has_own_tokenizer(arguments: Mapping[str, Any]) -> bool:
    if "gguf_file" in arguments:
        return False
    named = str(read_json_object(arguments, "tokenizer_config.json").get("tokenizer_class"))
    return named.startswith("InternLM2Tokenizer") or _own_config(arguments) is not None
