"""What is known of each vocabulary id that could be the reward token, and which one is best.

Gathering is separate from ranking: `gather` reads the tokenizer, `add_rows` the embedding, `add_corpus` the counts of
a text; `rank` only compares what they found.
"""

import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_TOKEN = "<|reward|>"
NUM_ORDINARY_ROWS = 256
ROWS_PER_RUN = 8  # ordinary rows come in runs of neighbours: 32 requests over a network, not 256
NEAR_ZERO = 0.01  # of the median norm
ORDINARY_NORM = 2  # medians at most, and as many times below at most: nearly all ordinary rows lie between
SAME_ROW_COSINE = 0.9999  # quantization and rounding leave rows that were never trained apart this close

# Names whose maker set them aside; [PADn] is how llama.cpp names a row without a token.
RESERVED_NAME = re.compile(
    r"reserved|unused|place.?holder|dummy|^\[control_\d+\]$|^<SPECIAL_\d+>$|extra_(id|\d+_token)|^\[PAD\d+\]$",
    re.IGNORECASE,
)
# Families whose later releases gave the low numbers a meaning (Mistral's [control_8] became [IMG]), and where
# Unsloth pads with the first: the highest number is the safe one. Elsewhere the lowest is what others use.
HIGHEST_FIRST = re.compile(r"^\[control_|^<SPECIAL_|^<\|placeholder\d|extra_id_", re.IGNORECASE)
# Qwen's marks of image regions: in the vocabulary of the text models too, which never see one.
IDLE_NAME = re.compile(r"^<\|(object_ref|box|quad)_(start|end)\|>$")
# What programs that repair a missing pad token take (Unsloth's pad_token.py; many Llama-3 projects pad with _250).
# It takes the first of a family of spare tokens in some versions and the last in others, so both ends are named.
PAD_FIXER_NAMES = frozenset(
    {"<|finetune_right_pad_id|>", "<|finetune_right_pad|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
     "<|placeholder1|>", "<|dummy_85|>", "<|dummy_87|>", "[control_8]", "[control_748]", "[control_768]",
     "<|reserved_special_token_247|>", "<|reserved_special_token_250|>", "<fim_pad>", "<|fim_pad|>", "[MASK]"}
)  # fmt: skip
TOOL_NAME = re.compile(r"tool|function|python_tag|ipython", re.IGNORECASE)
TEXT_END_NAME = re.compile(
    r"(^|[^a-z])(bos|eos|eot|eom|endoftext|(begin|end).of.(text|sentence)|</?s>)", re.IGNORECASE
)
PAD_NAME = re.compile(r"(^|[^a-z])pad([^a-z]|$)", re.IGNORECASE)
BRACKETED = re.compile(r"[<\[>].*[>\]<]")

KINDS = {
    "reserved": "set aside by its name",
    "idle": "made for image regions, which a text model never sees",
    "spare_row": "a row without a token: a new token takes it",
    "special": "special, and nothing here uses it",
    "resize": "no row is free: a new token makes the embedding grow",
    "new_token": "a new token takes a spare row where the embedding has one, else the embedding grows",
}
REASONS_TO_LOSE = (
    "would make the embedding grow, unless it has spare rows",
    "found in the corpus",
    "a later kind ({kind}: {words})",
    "taken by programs that repair a missing pad token",
    "a row of its own, or one that was not read, where the best has an untrained one",
    "not special: split_special_tokens does not keep typed text from becoming it",
    "equal evidence; {order}",
)


@dataclass(frozen=True)
class Evidence:
    """One id. None is "not looked at" throughout.

    `typed` is whether its text encodes to it, `typed_when_split` whether it does so even with
    split_special_tokens=True. `norm_ratio` is over the median norm of ordinary rows; `identical_to` are the ids with
    the same bits, `same_row_as` those with a cosine of at least 0.9999 besides. `occurrences` counts the id in the
    encoded corpus, `text_occurrences` its text there.
    """

    id: int
    token: str | None
    kind: str
    special: bool
    inside: bool | None = None
    typed: bool | None = None
    typed_when_split: bool | None = None
    pad_fixer: bool = False
    in_preset: bool = False
    used_by: tuple[str, ...] = ()
    norm: float | None = None
    norm_ratio: float | None = None
    near_zero: bool | None = None
    nearest_id: int | None = None
    nearest_cosine: float | None = None
    identical_to: tuple[int, ...] = ()
    same_row_as: tuple[int, ...] = ()
    occurrences: int | None = None
    text_occurrences: int | None = None

    @property
    def ruled_out(self) -> bool:
        return bool(self.used_by) or self.inside is False

    @property
    def untrained(self) -> bool:
        """Whether its row was read and is near zero, or the same as another's: no text ever changed it."""
        return bool(self.near_zero or self.same_row_as)

    def toml(self) -> str:
        """What to paste under [model]."""
        token = json.dumps(self.token or NEW_TOKEN, ensure_ascii=False)
        return f"reward_token = {token}\nreward_token_id = {self.id}"


@dataclass(frozen=True)
class RowSummary:
    """What was read of the embedding. `groups` are sets of bit-identical candidate rows."""

    where: str
    num_rows: int
    num_candidate_rows: int
    num_ordinary_rows: int
    median_norm: float
    bytes_read: int
    groups: tuple[tuple[int, ...], ...] = ()


# --- gathering ---


def gather(
    tokenizer: "PreTrainedTokenizerBase",
    num_rows: int | None,
    uses: Mapping[int, Sequence[str]],
    preset_tokens: Collection[str] = (),
) -> list[Evidence]:
    """Every special or reserved-looking token and the first id without one, in no particular order.

    `uses` are ids that model files name, with where; `preset_tokens` what shipped presets have as reward token.
    Tokens of the tokenizer's own roles, of its chat template and those it adds to every text are found here.
    """
    special_ids = set(tokenizer.all_special_ids)
    special_ids |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    own_uses = _own_uses(tokenizer)
    template = str(tokenizer.chat_template or "")
    found = []
    for token, index in tokenizer.get_vocab().items():
        kind = _kind(token, index in special_ids)
        if kind is None:
            continue
        used = [*own_uses.get(index, ()), *uses.get(index, ())]
        found.append(
            Evidence(
                id=index,
                token=token,
                kind=kind,
                special=index in special_ids,
                inside=None if num_rows is None else index < num_rows,
                pad_fixer=token in PAD_FIXER_NAMES or (kind != "reserved" and bool(PAD_NAME.search(token))),
                in_preset=token in preset_tokens,
                used_by=(
                    *used,
                    *(["chat template"] if token in template else []),
                    *(["tools, by its name"] if TOOL_NAME.search(token) else []),
                    *(["the ends of texts, by its name"] if not used and TEXT_END_NAME.search(token) else []),
                ),
            )
        )
    return [*found, _new_token(len(tokenizer), num_rows)]


def is_set_aside(tokenizer: "PreTrainedTokenizerBase", index: int) -> bool:
    """Whether the id is no ordinary word: special, added after training, or reserved by its name."""
    if index in tokenizer.added_tokens_decoder or index in tokenizer.all_special_ids:
        return True
    token = tokenizer.convert_ids_to_tokens(index)
    return isinstance(token, str) and _kind(token, special=False) is not None


def uses_named_in(file: str, values: Mapping[str, Any]) -> dict[int, list[str]]:
    """Ids that a config.json or generation_config.json gives a role, with where."""
    uses: dict[int, list[str]] = {}
    for key, value in values.items():
        if not key.endswith(("_token_id", "_token_ids", "_token_index", "_tokens")):
            continue
        for index in value if isinstance(value, list) else [value]:
            if isinstance(index, int) and not isinstance(index, bool):
                uses.setdefault(index, []).append(f"{file}.json {key}")
    return uses


def _kind(token: str, special: bool) -> str | None:
    if RESERVED_NAME.search(token) and (special or BRACKETED.fullmatch(token)):
        return "reserved"
    if special:
        return "idle" if IDLE_NAME.match(token) else "special"
    return None


def _new_token(num_tokens: int, num_rows: int | None) -> Evidence:
    if num_rows is None:
        return Evidence(id=num_tokens, token=None, kind="new_token", special=True)
    if num_tokens < num_rows:
        return Evidence(id=num_tokens, token=None, kind="spare_row", special=True, inside=True)
    return Evidence(id=num_tokens, token=None, kind="resize", special=True)


def _own_uses(tokenizer: "PreTrainedTokenizerBase") -> dict[int, list[str]]:
    """Roles in special_tokens_map (bos, eos, pad, unk, mask, image ...) and what is added to every text."""
    uses: dict[int, list[str]] = {}
    vocabulary = tokenizer.get_vocab()
    for role, token in tokenizer.special_tokens_map.items():
        for name in [token] if isinstance(token, str) else []:
            if name in vocabulary:
                uses.setdefault(vocabulary[name], []).append(role.removesuffix("_token"))
    for index in tokenizer("")["input_ids"]:  # type: ignore[union-attr]
        uses.setdefault(int(index), []).append("every text")
    return uses


def add_typing(candidates: Sequence[Evidence], tokenizer: "PreTrainedTokenizerBase") -> list[Evidence]:
    """Encode each token's own text, plainly and with split_special_tokens."""
    named = [candidate.token for candidate in candidates if candidate.token is not None]
    if not named:
        return list(candidates)
    plain = tokenizer(named, add_special_tokens=False)["input_ids"]
    split = tokenizer(named, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    encoded = dict(zip(named, zip(plain, split, strict=True), strict=True))  # type: ignore[arg-type]
    return [
        candidate
        if candidate.token is None
        else replace(
            candidate,
            typed=candidate.id in encoded[candidate.token][0],
            typed_when_split=candidate.id in encoded[candidate.token][1],
        )
        for candidate in candidates
    ]


def ordinary_ids(num_tokens: int, excluded: set[int], seed: int = 0) -> list[int]:
    """Up to 256 ids below `num_tokens` that are not `excluded`, in seeded runs of 8 neighbours."""
    runs = np.random.default_rng(seed).permutation(-(-num_tokens // ROWS_PER_RUN))
    chosen: list[int] = []
    for run in map(int, runs):
        start = run * ROWS_PER_RUN
        chosen += [row for row in range(start, min(start + ROWS_PER_RUN, num_tokens)) if row not in excluded]
        if len(chosen) >= NUM_ORDINARY_ROWS:
            break
    return sorted(chosen[:NUM_ORDINARY_ROWS])


def add_rows(
    candidates: Sequence[Evidence], rows: Mapping[int, np.ndarray], ordinary: Mapping[int, np.ndarray]
) -> tuple[list[Evidence], float, tuple[tuple[int, ...], ...]]:
    """Norms and neighbours of the candidates in `rows` among those and `ordinary`; the median norm; the groups."""
    ids = np.array([*rows, *ordinary], dtype=np.int64)
    values = np.stack([*rows.values(), *ordinary.values()]).astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    median = float(np.median(norms[len(rows) :]))
    unit = values / np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    groups = _identical(ids[: len(rows)], list(rows.values()))
    group_of = {index: group for group in groups for index in group}
    found = {}
    for position, index in enumerate(rows):
        identical = tuple(other for other in group_of.get(index, ()) if other != index)
        cosines = unit @ unit[position]
        comparable = (norms > 0) & (ids != index)
        as_long = np.abs(norms - norms[position]) <= 1e-3 * norms[position]
        close = ids[comparable & as_long & (cosines >= SAME_ROW_COSINE)]
        nearest = _nearest(ids[comparable], cosines[comparable], identical) if norms[position] else None
        found[index] = {
            "norm": float(norms[position]),
            "norm_ratio": float(norms[position] / median) if median else None,
            "near_zero": bool(norms[position] == 0 or norms[position] < NEAR_ZERO * median),
            "nearest_id": None if nearest is None else nearest[0],
            "nearest_cosine": None if nearest is None else nearest[1],
            "identical_to": identical,
            "same_row_as": tuple(sorted({*identical, *map(int, close)})),
        }
    return [replace(candidate, **found.get(candidate.id, {})) for candidate in candidates], median, groups


def _nearest(ids: np.ndarray, cosines: np.ndarray, identical: Sequence[int]) -> tuple[int, float] | None:
    """The id of the largest cosine: an identical row first, of equal ones (to 6 digits) the lowest id."""
    if identical:
        return identical[0], 1.0
    if not len(ids):
        return None
    rounded = np.round(cosines, 6)
    return int(ids[rounded == rounded.max()].min()), float(rounded.max())


def _identical(ids: Iterable[int], rows: Sequence[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    by_bits: dict[bytes, list[int]] = {}
    for index, row in zip(ids, rows, strict=True):
        by_bits.setdefault(row.tobytes(), []).append(int(index))
    return tuple(sorted(tuple(sorted(group)) for group in by_bits.values() if len(group) > 1))


def add_corpus(
    candidates: Sequence[Evidence], id_counts: np.ndarray, text_counts: Mapping[str, int] | None
) -> list[Evidence]:
    """`id_counts[id]` is how often the id occurs; `text_counts` is None where only ids are known."""
    return [
        candidate
        if candidate.token is None
        else replace(
            candidate,
            occurrences=int(id_counts[candidate.id]) if candidate.id < len(id_counts) else 0,
            text_occurrences=None if text_counts is None else text_counts.get(candidate.token, 0),
        )
        for candidate in candidates
    ]


# --- ranking ---


def rank(evidence: Iterable[Evidence]) -> list[Evidence]:
    """What is not ruled out, best first."""
    return sorted((candidate for candidate in evidence if not candidate.ruled_out), key=_rank_key)


def _rank_key(candidate: Evidence) -> tuple[int, ...]:
    """One number per entry of REASONS_TO_LOSE, smaller is better; the id at last, so that the order is total."""
    return (
        candidate.kind in ("resize", "new_token"),
        bool(candidate.occurrences or candidate.text_occurrences),
        list(KINDS).index(candidate.kind),
        candidate.pad_fixer,
        not candidate.untrained,
        not candidate.special,
        _order(candidate),
        candidate.id,
    )


def _order(candidate: Evidence) -> int:
    """Reserved names by number; among other specials the last, as an unused token usually ends the vocabulary."""
    if candidate.kind != "reserved":
        return -candidate.id
    digits = re.findall(r"\d+", candidate.token or "")
    number = int(digits[-1]) if digits else 0
    if not HIGHEST_FIRST.search(candidate.token or ""):
        return number
    return -sys.maxsize if candidate.in_preset else -number  # presets and inspect-token name one token


def _order_words(candidate: Evidence) -> str:
    if candidate.kind != "reserved":
        return "the last id is taken"
    if HIGHEST_FIRST.search(candidate.token or ""):
        if candidate.in_preset:
            return "one that a shipped preset has is taken, as later releases name the low numbers"
        return "the highest number is taken, as later releases name the low ones"
    return "the lowest number is taken, as others do"


def why_behind(best: Evidence, other: Evidence) -> str:
    """The first thing by which `other` ranks behind `best`, in words."""
    differences = zip(_rank_key(best), _rank_key(other), REASONS_TO_LOSE, strict=False)
    reason = next((words for mine, theirs, words in differences if mine != theirs), REASONS_TO_LOSE[-1])
    if other.kind == "resize":
        reason = reason.removesuffix(", unless it has spare rows")
    return reason.format(order=_order_words(best), kind=other.kind, words=KINDS[other.kind])


def why_first(best: Evidence) -> list[str]:
    """What speaks for the best candidate, and what to know about it."""
    said = [KINDS[best.kind]]
    if best.occurrences is not None:
        count = best.occurrences + (best.text_occurrences or 0)
        said.append("never occurs in the corpus" if not count else f"occurs in the corpus ({best.occurrences} times)")
    if best.token is not None:
        said.append("no role in the tokenizer, template or model files")
    if best.near_zero:
        said.append("its row is near zero (untrained): train starts it from the mean of trained rows")
    elif best.same_row_as:
        more = f" and {len(best.same_row_as) - 6} more" if len(best.same_row_as) > 6 else ""
        same = ", ".join(map(str, best.same_row_as[:6]))
        said.append(f"its row is the same as those of {same}{more}: never trained apart")
    elif best.norm_ratio is not None:
        said.append(_norm_words(best.norm_ratio))
    if best.typed_when_split:
        said.append("text that holds it becomes it, so prepare rejects such rows")
    return said


def _norm_words(ratio: float) -> str:
    """Of a row that is neither near zero nor shared: whether it looks like those of ordinary tokens."""
    if 1 / ORDINARY_NORM <= ratio <= ORDINARY_NORM:
        return f"its row has an ordinary norm ({ratio:.2f} of the median)"
    than = "longer" if ratio > 1 else "shorter"
    return f"its row is {than} than ordinary ones ({ratio:.2f} of the median norm): it may have been trained"


def why_ruled_out(candidate: Evidence) -> str:
    if candidate.inside is False:
        return "outside the embedding"
    return f"used by {', '.join(candidate.used_by)}"
