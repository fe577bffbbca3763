"""Texts to token ids, in batches: the transformers tokenizer, or gigatoken where it gives the same ids.

Both call their Rust side with whole batches and skip what transformers builds around each text. Neither is trusted:
the first texts of every run, and probes, are encoded by `tokenizer(...)` too, and must give the same ids.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np

from rmcli import output, threads
from rmcli.errors import ConfigError, RmcliError
from rmcli.installed import install_command

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EngineName = Literal["auto", "transformers", "gigatoken"]
SAMPLE = 256  # texts of the data that are encoded both ways before an engine is used alone
RECHECKED_EVERY = 512  # of gigatoken's texts, one in so many is encoded both ways all along
CHARACTERS_AT_A_TIME = 2**22

# Text that tokenizers tell apart: contractions, digits, white space, scripts without spaces, marks, emoji, controls.
_PROBES = (
    "",
    " ",
    "\n\n \n\t \r\n  x",
    "I'LL they're don't 'tis ''S",
    "1 12 123 1234 12345678 3.14 1,000,000 x2y",
    "  leading and trailing  ",
    "naïve café e\u0301 ÅÅ ﬁ ½ Ⅷ",
    "日本語のテキスト。中文文本，没有空格。한국어 문장",
    "नमस्ते สวัสดี שלום مرحبا",
    "👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u3000\ufeff",
    "\x00\x01\x7f\u0085\u2028",
    "def f(x):\n\treturn {'a': [x**2, \"b\"]}  # ok!!??...\n\n\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "https://example.org/a?b=c&d=%20#e_f-g",
)


class _Backend(Protocol):
    """`encode` gives per text its ids, (tokens,) int32, without special tokens beyond those the text spells."""

    name: str
    version: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...


class _Transformers:
    """The tokenizer's own Rust side; through `tokenizer(...)` where there is none or it does not agree."""

    name = "transformers"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", direct: bool = True) -> None:
        self.version = version("transformers")
        self._tokenizer = tokenizer
        self._direct = getattr(tokenizer, "backend_tokenizer", None) if direct else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._direct is None:
            return reference_ids(self._tokenizer, texts)
        batches = (self._direct.encode_batch_fast(part, add_special_tokens=False) for part in _parts_of(texts))
        return [np.array(encoding.ids, dtype=np.int32) for encodings in batches for encoding in encodings]


class _Gigatoken:
    """The package gigatoken, from the tokenizer's own description. Raises RuntimeError or ValueError to refuse it."""

    name = "gigatoken"

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        import awkward
        import gigatoken

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("it has no tokenizer.json")
        self.version = version("gigatoken")
        self._tokenizer = gigatoken.Tokenizer(backend)
        self._awkward = awkward

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        ragged = self._tokenizer.encode_batch(list(texts), parallel=False)
        ids = self._awkward.to_numpy(self._awkward.flatten(ragged)).view(np.int32)
        ends = np.cumsum(self._awkward.to_numpy(self._awkward.num(ragged))).tolist()
        return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def reference_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[np.ndarray]:
    """What `tokenizer(texts)` gives without added special tokens: (tokens,) int32 each."""
    batches = (tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in _parts_of(texts))
    return [np.array(row, dtype=np.int32) for ids in batches for row in ids]


def _parts_of(texts: Sequence[str]) -> Iterator[list[str]]:
    """In parts of CHARACTERS_AT_A_TIME, or one text: what `tokenizers` gives takes 250 bytes for each of them."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > CHARACTERS_AT_A_TIME:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


class TokenEngine:
    """Encodes texts. `name` and `version` are those of the engine in use, and final once `is_settled`.

    Texts are checked against `tokenizer(...)` until SAMPLE of them have been equal; nothing leaves unchecked before.
    `wanted`: auto is gigatoken where it is installed and agrees. Safe to use from several threads.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", wanted: EngineName = "transformers") -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()
        self._checked = 0
        self._since_check = 0
        self._backend: _Backend = _Transformers(tokenizer)
        if wanted != "transformers":
            self._try_gigatoken(wanted)
        probes = _probes(tokenizer)
        self._agree_on(probes, "a probe")
        self._checked = 0

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def version(self) -> str:
        return self._backend.version

    @property
    def is_settled(self) -> bool:
        """Whether SAMPLE texts have been compared."""
        return self._checked >= SAMPLE

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, (tokens,) int32."""
        if not texts:
            return []
        if not self.is_settled:
            with self._lock:
                return self._encode_checked(texts)
        ids = self._backend.encode(texts)
        if self.name == _Gigatoken.name:
            self._check_again(texts, ids)
        return ids

    def _encode_checked(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Compare the first texts. Until they have been equal transformers' ids are the ones given out."""
        sample = texts[: SAMPLE - self._checked]
        rest = texts[len(sample) :]
        ids = self._agree_on(sample, "a text of this data")
        return [*ids, *(self._backend.encode(rest) if rest else [])]

    def _agree_on(self, texts: Sequence[str], what: str) -> list[np.ndarray]:
        """Encode both ways; to the next slower engine, said aloud, until the ids are the same."""
        expected = reference_ids(self._tokenizer, texts)  # this also sets the Rust side to cut and pad nothing
        while not _equal(self._backend.encode(texts), expected):
            engine = f"gigatoken {self.version}" if self.name == _Gigatoken.name else "the tokenizer's Rust side"
            output.warn(f"{engine} gives other ids than tokenizer(...) for {what}: encoding the slower way")
            self._backend = _Transformers(self._tokenizer, direct=self.name == _Gigatoken.name)
            self._checked = 0
        self._checked += len(texts)
        return expected

    def _check_again(self, texts: Sequence[str], ids: list[np.ndarray]) -> None:
        with self._lock:
            first = -self._since_check % RECHECKED_EVERY
            self._since_check += len(texts)
        for index in range(first, len(texts), RECHECKED_EVERY):
            if not _equal([ids[index]], reference_ids(self._tokenizer, [texts[index]])):
                raise RmcliError(
                    f"gigatoken {self.version} gives other ids than transformers for {texts[index][:60]!r}...",
                    "prepare with -s data.tokenizer_engine=transformers, and please report the text to gigatoken",
                )

    def _try_gigatoken(self, wanted: str) -> None:
        try:
            self._backend = _Gigatoken(self._tokenizer)
        except ImportError as error:
            if wanted == "gigatoken":
                raise ConfigError(
                    f"data.tokenizer_engine = 'gigatoken': {error}", f"install it: {install_command('fast')}"
                ) from error
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(": [")[0]  # no regexes
            tell = output.warn if wanted == "gigatoken" else output.say  # auto asked for nothing that is refused
            tell(f"gigatoken refuses this tokenizer ({reason}): encoding with transformers")


def _probes(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Texts around every kind of token the vocabulary adds, and the ones above."""
    added = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    around = [f"x{token}y {token} z\n{token}" for token in added[:512]]
    return [*_PROBES, *around, "".join(added[:16])]


def _equal(ids: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return len(ids) == len(expected) and all(map(np.array_equal, ids, expected))


Batch = TypeVar("Batch")
Result = TypeVar("Result")


def in_order(
    encode: Callable[[Batch], Result],
    batches: Iterable[Batch],
    num_threads: int,
    is_settled: Callable[[], bool],
) -> Iterator[tuple[Batch, Result]]:
    """Each batch with `encode(batch)`, in order, a few batches ahead in `num_threads` threads.

    Threads are enough: tokenizers work outside the interpreter's lock, and one memory holds vocabulary and results.
    The batches up to `is_settled()` are encoded here, so that it does not depend on the number of threads which
    texts settle the engine.
    """
    with _one_thread_per_call():
        batches = iter(batches)
        while not is_settled() and (first := list(islice(batches, 1))):
            yield first[0], encode(first[0])
        yield from threads.in_order(encode, batches, num_threads)


@contextmanager
def _one_thread_per_call() -> Iterator[None]:
    """tokenizers start a thread per core in every call unless told not to; data.num_proc is the only number."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
