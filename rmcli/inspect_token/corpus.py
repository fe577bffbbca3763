"""How often each candidate occurs in a corpus (--corpus): a source as `prepare` reads it, or a prepared folder."""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmcli.errors import RmcliError
from rmcli.inspect_token.report import CorpusSummary
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.rows import sources
from rmcli.tokens import evidence
from rmcli.tokens.evidence import Evidence
from rmcli.tokens.tokenizer import RewardTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_PER_BATCH = 256


def count_corpus(
    candidates: Sequence[Evidence], corpus: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Evidence], CorpusSummary]:
    """Count candidates in a source as `prepare` reads it, or in a prepared folder."""
    if (Path(corpus) / "manifest.json").is_file():
        return _count_prepared(candidates, Path(corpus), tokenizer)
    id_counts = np.zeros(len(tokenizer), dtype=np.int64)
    text_counts: Counter[str] = Counter()
    names = sorted((c.token for c in candidates if c.token is not None), key=len, reverse=True)
    any_name = re.compile("|".join(map(re.escape, names)) or r"(?!)")  # (?!) matches nothing
    num_texts = num_unreadable = 0
    sources.check_sources([corpus])
    for batch in _batches(corpus):
        num_unreadable += batch.count(None)
        texts = [text for text in batch if text is not None]
        if not texts:
            continue
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:  # type: ignore[union-attr]
            id_counts += np.bincount(np.asarray(ids, dtype=np.int64), minlength=len(id_counts))
        for text in texts:
            text_counts.update(any_name.findall(text))
        num_texts += len(texts)
    if not num_texts:
        raise RmcliError(f"--corpus {corpus}: no text in it ({num_unreadable} unreadable rows)")
    summary = CorpusSummary(corpus, num_texts, int(id_counts.sum()), num_unreadable, True)
    return evidence.add_corpus(candidates, id_counts, text_counts), summary


def _batches(corpus: str) -> Iterator[list[str | None]]:
    """The texts of a source in batches; None stands for a row that cannot be read."""
    batch: list[str | None] = []
    for row in sources.read_rows([corpus], "train"):
        batch.extend([None] if row.value is None else _texts_in(row.value))
        if len(batch) >= TEXTS_PER_BATCH:
            yield batch
            batch = []
    yield batch


def _texts_in(value: object) -> Iterator[str]:
    """Every text field, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, Iterable):
        for inner in value:
            yield from _texts_in(inner)


def _count_prepared(
    candidates: Sequence[Evidence], folder: Path, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Evidence], CorpusSummary]:
    """Count ids in prepared rows: each shared prompt once, each response without its reward token."""
    manifest = read_manifest(folder)
    _check_same_tokenizer(manifest, folder, tokenizer)
    id_counts = np.zeros(len(tokenizer) + 1, dtype=np.int64)
    num_texts = 0
    for split in SPLITS:
        packed = PackedSplit(folder, split)
        for row in range(len(packed)):
            for group in packed.groups(row):
                ids = np.concatenate([group.prefix, *(response[:-1] for response in group.responses)])
                id_counts += np.bincount(ids, minlength=len(id_counts))
                num_texts += len(group.responses)
    summary = CorpusSummary(str(folder), num_texts, int(id_counts.sum()), 0, False)
    return evidence.add_corpus(candidates, id_counts, None), summary


def _check_same_tokenizer(manifest: Mapping[str, Any], folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    own = copy.deepcopy(tokenizer)
    if manifest["reward_token"] not in own.get_vocab():
        own.add_tokens([manifest["reward_token"]], special_tokens=True)
    here = RewardTokenizer(own, manifest["reward_token"], 0, 0).fingerprint()["tokenizer_sha256"]
    if here != manifest["tokenizer_sha256"]:
        raise RmcliError(
            f"--corpus {folder} was prepared with another tokenizer: {manifest['tokenizer_sha256'][:16]} there, "
            f"{here[:16]} here",
            "give the file it was prepared from",
        )
