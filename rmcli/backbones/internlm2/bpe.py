"""A SentencePiece BPE model as a `tokenizers` BPE, proven to give the same ids."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.errors import ConfigError
from rmcli.installed import install_command

if TYPE_CHECKING:
    import sentencepiece
    from tokenizers import Tokenizer

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
            install_command("internlm2"),
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
