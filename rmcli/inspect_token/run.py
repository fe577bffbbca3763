"""`rmcli inspect-token`: which vocabulary id should be the reward token, and why (docs/inspect-token.md)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rmcli.backbones.embedding_rows import Embedding
from rmcli.config.presets import preset_reward_tokens
from rmcli.config.sections import ModelSection
from rmcli.errors import RmcliError
from rmcli.inspect_token.corpus import count_corpus
from rmcli.inspect_token.model_files import config_of, count_embedding_rows, find_embedding, uses_in_model_files
from rmcli.inspect_token.report import Report
from rmcli.inspect_token.verdict import compare_configured
from rmcli.tokens import evidence
from rmcli.tokens.evidence import Evidence, RowSummary
from rmcli.tokens.tokenizer import load_bare_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CANDIDATE_ROWS = 64  # without --all: Gemma-3 has 6242 candidates, of 10 kB each and alike


def run(model: ModelSection, corpus: str | None = None, all_rows: bool = False) -> Report:
    """Gather the evidence for every candidate and rank it. Reads only the embedding rows it needs.

    Raises RmcliError when the tokenizer cannot be had or a weight file is damaged; weights that are merely not at
    hand are listed in `not_looked_at`.
    """
    missing: list[str] = []
    config = config_of(model)
    tokenizer = load_bare_tokenizer(model)
    embedding = find_embedding(model, config, missing)
    num_rows = count_embedding_rows(config, embedding, missing)
    uses, own_reward_id = uses_in_model_files(model, config, missing)
    gathered = evidence.gather(tokenizer, num_rows, uses, preset_reward_tokens())
    gathered = [_without_own_template(candidate, own_reward_id) for candidate in gathered]
    ruled_out = sorted((c for c in gathered if c.ruled_out), key=lambda candidate: candidate.id)
    candidates = evidence.add_typing(evidence.rank(gathered), tokenizer)
    rows, corpus_summary = None, None
    if embedding is not None:
        candidates, rows = _read_rows(candidates, embedding, tokenizer, None if all_rows else MAX_CANDIDATE_ROWS)
    if corpus is not None:
        candidates, corpus_summary = count_corpus(candidates, corpus, tokenizer)
    ranked = evidence.rank(candidates)
    return Report(
        name=str(model.pretrained_model_name_or_path),
        num_embedding_rows=num_rows,
        num_tokens=len(tokenizer),
        candidates=tuple(ranked),
        ruled_out=tuple(ruled_out),
        rows=rows,
        corpus=corpus_summary,
        configured=compare_configured(model, tokenizer, ranked, ruled_out),
        not_looked_at=tuple(missing),
    )


def _without_own_template(candidate: Evidence, own_reward_id: int | None) -> Evidence:
    """A trained reward model's template ends with its reward token: that is no other use."""
    if candidate.id != own_reward_id:
        return candidate
    return replace(candidate, used_by=tuple(use for use in candidate.used_by if use != "chat template"))


def _read_rows(
    candidates: Sequence[Evidence], embedding: Embedding, tokenizer: "PreTrainedTokenizerBase", limit: int | None
) -> tuple[list[Evidence], RowSummary]:
    """Read the rows of the first `limit` candidates and of 256 ordinary tokens."""
    wanted = [candidate.id for candidate in candidates if candidate.id < embedding.num_rows][:limit]
    named = {candidate.id for candidate in candidates} | set(tokenizer.all_special_ids)
    ordinary = evidence.ordinary_ids(min(len(tokenizer), embedding.num_rows), named)
    if not ordinary:
        raise RmcliError(f"{embedding.where}: every token is special, so there is no ordinary row to compare with")
    ids = [*wanted, *ordinary]
    values = embedding.read(ids)
    if not np.isfinite(values).all():
        bad = ids[int(np.argmax(~np.isfinite(values).all(axis=1)))]
        raise RmcliError(f"{embedding.where}: row {bad} is not finite", "download the model again")
    split = len(wanted)
    found, median, groups = evidence.add_rows(
        candidates,
        dict(zip(wanted, values[:split], strict=True)),
        dict(zip(ordinary, values[split:], strict=True)),
    )
    summary = RowSummary(
        embedding.where, embedding.num_rows, split, len(ordinary), median, embedding.bytes_read, groups
    )
    return found, summary
