"""InternLM2's own checkpoint layout, read into transformers' Llama, which computes the same. No remote code is run.

Layout (InternLM's published modeling_internlm2.py and tokenization_internlm2.py): queries, keys and values of a layer
are fused in `attention.wqkv`, grouped by key/value head; the MLP is `feed_forward.w1` (gate), `w3` (up) and `w2`
(down); `output` is the language head, and reward models (InternLM2ForRewardModel) have `v_head` instead. The
tokenizer is a SentencePiece BPE model whose unused pieces tokenizer_config.json renames (to <|im_start|>, say).

The reward models XTuner saves, InternLM's own and POLAR share this layout: the score is `v_head` at the reward token,
config.json's `reward_token_id`, put at the end. POLAR compares with a reference: its input is the text
`prompt + reference <|split_token|> prompt + candidate <|reward|>`. No command composes that: who scores with POLAR
writes it himself as one message of the assistant, up to the candidate's end, under a chat template that adds nothing.

`AutoConfig`, `AutoTokenizer` and `AutoSequenceClassifier` stand where transformers' own would: they read this layout
and pass everything else on. Heavy imports are inside functions, as in tokenizer, which imports this file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.config.layers import read_json
from rmcli.errors import ConfigError, RmcliError

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer
    from torch import Tensor
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

MODEL_TYPE = "internlm2"
REWARD_ARCHITECTURE = "InternLM2ForRewardModel"

# A weight file and its index when it is sharded, in the order they are looked for.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_NEEDED = (*_SIZES, "rms_norm_eps", "rope_theta", "bias")
_CARRIED = ("initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
_LANGUAGE_HEAD = "output.weight"
_SCORE_HEAD = "v_head.weight"

# What the published tokenizer classes take where tokenizer_config.json is silent.
_DEFAULT_SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
_NORMAL, _USER_DEFINED = 1, 4  # SentencePiece's piece types
_BPE = 2  # SentencePiece's model type
_SPACE = "▁"  # how SentencePiece writes a space
_PROBES = (
    "Sort these: 3, 1 and 2.  Then  stop.",
    " leading and trailing \t tabs \n\n\nnewlines\r\n ",
    "def f(x):\n    return x ** 2  # <b>&amp;</b>\n",
    "Grüße, 世界。 Привет мир! こんにちは 안녕하세요 مرحبا 🙂👩‍🚀 e\u0301 \u00a0\u200b",
    "▁ [INST] <0x41> [UNUSED_TOKEN] <|",
)


class AutoConfig:
    """transformers' AutoConfig, which also takes an InternLM2 config.json."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        values = _own_config(arguments)
        if values is not None:
            return llama_config(values, arguments["pretrained_model_name_or_path"])
        return transformers.AutoConfig.from_pretrained(**arguments)


class AutoSequenceClassifier:
    """transformers' AutoModelForSequenceClassification, which also takes InternLM2's weights."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        if _own_config(arguments) is None:
            return transformers.AutoModelForSequenceClassification.from_pretrained(**arguments)
        return load_weights({key: arguments[key] for key in _LOCATION if key in arguments})


class AutoTokenizer:
    """transformers' AutoTokenizer, which also takes InternLM2's: its tokenizer.json if there is one, else its
    tokenizer.model."""

    @staticmethod
    def from_pretrained(**arguments: Any) -> Any:
        import transformers

        if not _has_own_tokenizer(arguments):
            return transformers.AutoTokenizer.from_pretrained(**arguments)
        if _file(arguments, "tokenizer.json") is None:
            return load_sentencepiece_tokenizer(arguments)
        # The class named in tokenizer_config.json is remote code; tokenizer.json says all that it would do.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(**arguments)
        tokenizer.init_kwargs.pop("auto_map", None)
        return tokenizer


# --- where files are ---

_LOCATION = ("pretrained_model_name_or_path", "revision")


def _file(arguments: Mapping[str, Any], name: str, needed: bool = False) -> Path | None:
    """A file of the folder or of the Hub's repository. None, or OSError when it is needed, where there is none."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        arguments["pretrained_model_name_or_path"],
        name,
        revision=arguments.get("revision"),
        _raise_exceptions_for_missing_entries=needed,
    )
    return None if found is None else Path(found)


def _json(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises ConfigError when it holds none."""
    path = _file(arguments, name)
    return {} if path is None else read_json(path)


def _own_config(arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json's values when it is InternLM2's, else None."""
    if "gguf_file" in arguments:
        return None
    values = _json(arguments, "config.json")
    return values if values.get("model_type") == MODEL_TYPE else None


def _has_own_tokenizer(arguments: Mapping[str, Any]) -> bool:
    if "gguf_file" in arguments:
        return False
    named = str(_json(arguments, "tokenizer_config.json").get("tokenizer_class"))
    return named.startswith("InternLM2Tokenizer") or _own_config(arguments) is not None


# --- the config ---


def llama_config(values: Mapping[str, Any], name: str) -> "LlamaConfig":
    """The Llama config that computes what an InternLM2 config.json describes.

    Raises ConfigError for a missing or impossible value and for another rope: nothing is guessed.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaConfig

    where = f"config.json of {name} (internlm2)"
    missing = [key for key in _NEEDED if values.get(key) is None]
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}", "the folder is not complete")
    heads = values["num_attention_heads"]
    groups = values.get("num_key_value_heads") or heads
    for key, value in (*((key, values[key]) for key in _SIZES), ("num_key_value_heads", groups)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where} has {key} = {value!r}, which is no size", "the file is damaged")
    if values["hidden_size"] % heads or heads % groups:
        raise ConfigError(
            f"{where}: {heads} heads do not divide hidden_size = {values['hidden_size']}, or {groups} key/value "
            "heads do not divide them",
            "the file is damaged",
        )
    carried = {key: values[key] for key in (*_CARRIED, "reward_token_id") if key in values}
    try:
        return LlamaConfig(
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            intermediate_size=values["intermediate_size"],
            num_hidden_layers=values["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=values["hidden_size"] // heads,
            hidden_act=values.get("hidden_act", "silu"),
            max_position_embeddings=values["max_position_embeddings"],
            rms_norm_eps=values["rms_norm_eps"],
            rope_parameters=_rope_parameters(values, where),
            attention_bias=values["bias"],  # of wqkv and wo; the MLP has none
            mlp_bias=False,
            **carried,
        )
    except StrictDataclassError as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[-1].strip()}", "the file is damaged") from error


def _rope_parameters(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """transformers 5's `rope_parameters` from `rope_theta` and `rope_scaling` {type, factor}.

    `dynamic` is plain below max_position_embeddings and takes another base above it.
    """
    theta = float(values["rope_theta"])
    scaling = values.get("rope_scaling")
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    given = dict(scaling) if isinstance(scaling, dict) else {}
    kind = given.pop("type", given.get("rope_type"))  # the old name and the new one
    match given:
        case {"factor": int() | float() as factor} if set(given) <= {"factor", "rope_type"}:
            if kind in ("dynamic", "linear") and given.get("rope_type", kind) == kind:
                return {"rope_type": kind, "rope_theta": theta, "factor": float(factor)}
    raise ConfigError(
        f"{where} has rope_scaling = {scaling}", "InternLM2's are {'type': 'dynamic' or 'linear', 'factor': ...}"
    )


# --- the weights ---


def load_weights(location: Mapping[str, Any]) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """The float32 classifier filled from the checkpoint, and what `output_loading_info` would report.

    Shards are mapped and read one tensor at a time: memory is the model and one shard at most. `score.weight` is
    uninitialised and among the missing keys when the checkpoint has no `v_head`.
    Raises RmcliError for a tensor that is missing, left over, given twice or of another shape.
    """
    import torch
    from transformers import LlamaForSequenceClassification
    from transformers.initialization import no_init_weights

    name = location["pretrained_model_name_or_path"]
    config = llama_config(_json(location, "config.json"), name)
    config.num_labels, config.dtype = 1, torch.float32
    with no_init_weights():
        network = LlamaForSequenceClassification(config)
    has_head = fill(network, stored_tensors(location), name)
    return network, {"missing_keys": set() if has_head else {"score.weight"}, "mismatched_keys": set()}


def stored_tensors(location: Mapping[str, Any]) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor) of the whole checkpoint, shard after shard, in whatever type it is stored."""
    for path in _weight_files(location):
        yield from _safetensors_of(path) if path.suffix == ".safetensors" else _pickled_tensors_of(path)


def _weight_files(location: Mapping[str, Any]) -> list[Path]:
    first = next((name for name in WEIGHT_FILES if _file(location, name) is not None), None)
    if first is None:
        raise RmcliError(
            f"{location['pretrained_model_name_or_path']} has no weights", f"looked for {', '.join(WEIGHT_FILES)}"
        )
    names = [first]
    if first.endswith(".index.json"):
        weight_map = _json(location, first).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RmcliError(f"{_file(location, first)} has no weight_map", "the checkpoint is damaged")
        names = sorted(set(weight_map.values()))
    return [path for name in names if (path := _file(location, name, needed=True)) is not None]


def _safetensors_of(path: Path) -> "Iterator[tuple[str, Tensor]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 - it is no dict
                yield key, shard.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise RmcliError(f"{path} cannot be read: {error}", "the file is damaged or not whole") from error


def _pickled_tensors_of(path: Path) -> "Iterator[tuple[str, Tensor]]":
    from pickle import UnpicklingError

    import torch

    try:
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RmcliError(f"{path} cannot be read: {first}", "the file is damaged or not whole") from error
    if not isinstance(shard, dict) or not all(isinstance(value, torch.Tensor) for value in shard.values()):
        raise RmcliError(f"{path} holds no tensors by name", "the checkpoint is damaged")
    yield from shard.items()


def fill(network: "PreTrainedModel", tensors: "Iterable[tuple[str, Tensor]]", name: str) -> bool:
    """Copy a checkpoint's tensors into a Llama classifier. True when they held a score head.

    Names may or may not begin with `model.`; the language head is dropped, as a reward model has none. Raises
    RmcliError unless every parameter, the score head apart, is filled once with its own shape.
    """
    import torch

    config: Any = network.config
    places = llama_names(config)
    parameters = dict(network.named_parameters())
    seen: set[str] = set()
    for key, tensor in tensors:
        own = key.removeprefix("model.")
        if own == _LANGUAGE_HEAD:
            continue
        if own not in places:
            raise RmcliError(
                f"the checkpoint of {name} holds {key}, for which an InternLM2 of {config.num_hidden_layers} layers "
                "has no place",
                "config.json and weights must belong together; quantized and adapter checkpoints are not read",
            )
        if own in seen:
            raise RmcliError(f"the checkpoint of {name} holds {key} twice", "the checkpoint is damaged")
        seen.add(own)
        targets = [parameters[target] for target in places[own]]
        shape = (sum(target.shape[0] for target in targets), *targets[0].shape[1:])
        if tensor.shape != shape or not tensor.is_floating_point():
            raise RmcliError(
                f"the checkpoint of {name}: {key} is {tuple(tensor.shape)} of {tensor.dtype}, not {shape} of floats",
                "config.json and weights must belong together",
            )
        parts = split_qkv(tensor, config) if len(targets) == 3 else (tensor,)
        with torch.no_grad():
            for target, part in zip(targets, parts, strict=True):
                target.copy_(part)
    missing = [own for own in places if own not in seen and own != _SCORE_HEAD]
    if missing:
        raise RmcliError(
            f"the checkpoint of {name} lacks {len(missing)} tensor{'s' * (len(missing) > 1)}, first {missing[0]}",
            "the checkpoint must hold every weight its config.json asks for",
        )
    return _SCORE_HEAD in seen


def llama_names(config: "LlamaConfig") -> dict[str, tuple[str, ...]]:
    """InternLM2's tensor names, without `model.`, and the Llama parameters each one fills."""
    names: dict[str, tuple[str, ...]] = {"tok_embeddings.weight": ("model.embed_tokens.weight",)}
    kinds = ("weight", "bias") if config.attention_bias else ("weight",)
    for number in range(config.num_hidden_layers):
        here, there = f"layers.{number}", f"model.layers.{number}"
        for kind in kinds:
            queries_keys_values = tuple(f"{there}.self_attn.{part}_proj.{kind}" for part in "qkv")
            names[f"{here}.attention.wqkv.{kind}"] = queries_keys_values
            names[f"{here}.attention.wo.{kind}"] = (f"{there}.self_attn.o_proj.{kind}",)
        for own, llama in (
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            names[f"{here}.{own}.weight"] = (f"{there}.{llama}.weight",)
    names["norm.weight"] = ("model.norm.weight",)
    names[_SCORE_HEAD] = ("score.weight",)
    return names


def split_qkv(wqkv: "Tensor", config: "LlamaConfig") -> "tuple[Tensor, Tensor, Tensor]":
    """Queries, keys and values of a fused `wqkv` (weight or bias).

    Its rows read as (key/value heads, queries per key/value head + 2, head_dim): each group holds its queries, then
    its key, then its value. Llama's heads stand in the same order, group by group.
    """
    groups = config.num_key_value_heads
    assert groups is not None  # llama_config sets it
    per_group = config.num_attention_heads // groups + 2
    grouped = wqkv.reshape(groups, per_group, -1, *wqkv.shape[1:])
    return grouped[:, :-2].flatten(0, 2), grouped[:, -2].flatten(0, 1), grouped[:, -1].flatten(0, 1)


# --- the tokenizer ---


def load_sentencepiece_tokenizer(location: Mapping[str, Any]) -> "PreTrainedTokenizerBase":
    """A fast tokenizer from tokenizer.model, tokenizer_config.json and, where there is one, chat_template.jinja.

    Ids are SentencePiece's. Special tokens cut the text first, as in the published tokenizer, and each piece of text
    between them is encoded for itself. Raises ConfigError for a missing package or file, and for a tokenizer.model
    whose ids could not be given exactly.
    """
    from transformers import PreTrainedTokenizerFast

    name = location["pretrained_model_name_or_path"]
    model_file = _file(location, "tokenizer.model")
    if model_file is None:
        raise ConfigError(
            f"{name} has neither tokenizer.json nor tokenizer.model",
            "give another: -s model.tokenizer_name_or_path=PATH",
        )
    settings = _json(location, "special_tokens_map.json") | _json(location, "tokenizer_config.json")
    special = {key: _content(settings.get(key, default)) for key, default in _DEFAULT_SPECIAL_TOKENS.items()}
    extra = [_content(token) for token in settings.get("additional_special_tokens") or []]
    added = _added_tokens(settings, _json(location, "added_tokens.json"), name)
    renamed = {index: token.content for index, token in added.items()}
    backend = sentencepiece_to_fast(model_file, renamed)
    _add_tokens(backend, added, [token for token in (*special.values(), *extra) if token], model_file)
    template_file = _file(location, "chat_template.jinja")
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


def sentencepiece_to_fast(model_file: Path, renamed: Mapping[int, str]) -> "Tokenizer":
    """A `tokenizers` BPE with the ids of a SentencePiece model, whose pieces at `renamed` take other names.

    Byte fallback, dummy prefix, normalisation and user-defined pieces are the model's. Raises ConfigError when the
    model is of another kind, or gives other ids than SentencePiece on some probing texts.
    """
    from tokenizers import Tokenizer, models

    processor, proto = _read_sentencepiece(model_file)
    spec = proto.trainer_spec
    if spec.model_type != _BPE or spec.treat_whitespace_as_suffix or not proto.normalizer_spec.escape_whitespaces:
        raise ConfigError(
            f"{model_file} is no SentencePiece BPE model with words marked at their beginning",
            "InternLM2's is one; is this the right file?",
        )
    names = [renamed.get(index, piece.piece) for index, piece in enumerate(proto.pieces)]
    vocabulary = {text: index for index, text in enumerate(names)}
    if len(vocabulary) < len(names):
        twice = next(text for index, text in enumerate(names) if vocabulary[text] != index)
        raise ConfigError(f"{model_file} and tokenizer_config.json give two ids to {twice!r}")
    kept = [(index, piece) for index, piece in enumerate(proto.pieces) if index not in renamed]
    user_defined = [piece.piece for _, piece in kept if piece.type == _USER_DEFINED]
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges({piece.piece: piece.score for _, piece in kept if piece.type == _NORMAL}),
            unk_token=names[spec.unk_id],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
            ignore_merges=bool(user_defined),
        )
    )
    backend.normalizer = _normalizer(proto.normalizer_spec)
    if user_defined:
        backend.pre_tokenizer = _isolate(user_defined)
    backend.decoder = _decoder(proto.normalizer_spec.add_dummy_prefix)
    _check_ids(backend, processor, [*_PROBES, *user_defined[:1]], model_file)
    return backend


def _read_sentencepiece(model_file: Path) -> "tuple[sentencepiece.SentencePieceProcessor, Any]":
    try:
        import google.protobuf.message
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ConfigError(
            f"{model_file} needs the package {'protobuf' if 'google' in str(error) else 'sentencepiece'}",
            "pip install 'rmcli[internlm2]'",
        ) from error
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        content = model_file.read_bytes()
        proto.ParseFromString(content)
        return sentencepiece.SentencePieceProcessor(model_proto=content), proto
    except (OSError, RuntimeError, google.protobuf.message.DecodeError) as error:
        raise ConfigError(f"{model_file} cannot be read as a SentencePiece model: {error}") from error


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All ways to join two ordinary pieces into a third; SentencePiece prefers the result with the highest score."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _isolate(pieces: Iterable[str]) -> Any:
    """User-defined pieces stand alone wherever they occur, the longest first. As words of their own they are looked
    up whole (`ignore_merges`). They are no added tokens: those would cut the text before the dummy prefix is set."""
    from tokenizers import Regex, pre_tokenizers

    longest_first = sorted(pieces, key=len, reverse=True)
    return pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")


def _decoder(has_dummy_prefix: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _check_ids(
    backend: "Tokenizer", processor: "sentencepiece.SentencePieceProcessor", texts: Iterable[str], model_file: Path
) -> None:
    """Raise ConfigError where the two differ: wrong ids would train and score without a sign of it."""
    for text in texts:
        expected = processor.encode(text, out_type=int)
        if backend.encode(text, add_special_tokens=False).ids != expected:
            raise ConfigError(
                f"{model_file}: SentencePiece's ids for {text!r} cannot be given exactly",
                "put the model's tokenizer.json beside it; please report it with the model's name",
            )
