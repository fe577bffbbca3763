"""The verdict in words: the table, why the best is first, what is behind it, and the lines to paste."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.config.sections import ModelSection
from rmcli.inspect_token.report import Configured, Report
from rmcli.tokens import evidence
from rmcli.tokens.evidence import Evidence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SHOWN = 10
NARROW = ("rank", "id", "token", "kind", "norm", "in corpus")


# --- the configured token ---


def compare_configured(
    model: ModelSection,
    tokenizer: "PreTrainedTokenizerBase",
    ranked: Sequence[Evidence],
    ruled_out: Sequence[Evidence],
) -> Configured | None:
    """What the preset or file names, and where the evidence puts it."""
    token, index = model.reward_token, model.reward_token_id
    if token is None and index is None:
        return None
    known = token in tokenizer.get_vocab() if token is not None else False
    found = tokenizer.get_vocab()[token] if token is not None and known else index
    name = f"configured {token!r} ({found})" if token is not None else f"configured id {found}"
    for rank, candidate in enumerate(ranked, 1):
        if candidate.id == found and (candidate.token is None or token is None or known):
            behind = "the verdict" if rank == 1 else f"rank {rank}: {evidence.why_behind(ranked[0], candidate)}"
            return Configured(found, token, rank, f"{name} is {behind}")
    for candidate in ruled_out:
        if candidate.id == found:
            return Configured(found, token, None, f"{name} is ruled out: {evidence.why_ruled_out(candidate)}")
    return Configured(found, token, None, f"{name} is no candidate: no special or reserved token, nor a free row")


# --- showing ---


def show(report: Report, everything: bool, wide: bool = False) -> None:
    """The table, the verdict in words and the lines to paste."""
    rows = "unknown" if report.num_embedding_rows is None else f"{report.num_embedding_rows:,}"
    output.answer(f"{report.name}: {report.num_tokens:,} tokens, embedding rows {rows}")
    for missing in report.not_looked_at:
        output.prose(f"not looked at: {missing}")
    for line in [*rows_lines(report), *corpus_lines(report)]:
        output.prose(line)
    limit = len(report.candidates) if everything else NUM_SHOWN
    _show_table(report, report.candidates[:limit], wide)
    if len(report.candidates) > limit:
        output.answer(f"{len(report.candidates) - limit:,} more with --all")
    if everything and report.ruled_out:
        output.table(
            ["ruled out", "token", "why"],
            [[str(c.id), c.token, evidence.why_ruled_out(c)] for c in report.ruled_out],
            to_answer=True,
            wide=wide,
        )
    for line in verdict_lines(report):
        output.prose(line)
    output.answer(f"\n[model]\n{report.best.toml()}")


def rows_lines(report: Report) -> list[str]:
    rows = report.rows
    if rows is None:
        return []
    read = f"{rows.num_candidate_rows} candidate and {rows.num_ordinary_rows} ordinary rows"
    lines = [f"read {read} ({rows.bytes_read:,} bytes); the median norm of ordinary rows is {rows.median_norm:.4g}"]
    groups = [_id_range(group) for group in rows.groups]
    return lines + ([f"bit-identical rows, never trained apart: {' | '.join(groups)}"] if groups else [])


def _id_range(ids: Sequence[int]) -> str:
    if len(ids) > NUM_SHOWN:
        return f"{ids[0]} ... {ids[-1]} ({len(ids)} rows)"
    return " ".join(map(str, ids))


def corpus_lines(report: Report) -> list[str]:
    corpus = report.corpus
    if corpus is None:
        return []
    what = "texts" if corpus.has_text else "prepared conversations (ids only; their text is not kept)"
    unreadable = f", {corpus.num_unreadable:,} unreadable rows" if corpus.num_unreadable else ""
    return [f"corpus {corpus.source}: {corpus.num_texts:,} {what}, {corpus.num_tokens:,} tokens{unreadable}"]


def _show_table(report: Report, candidates: Sequence[Evidence], wide: bool) -> None:
    columns = ["rank", "id", "token", "kind", "special", "typed text"]
    columns += ["norm", "nearest"] if report.rows is not None else []
    columns += ["in corpus"] if report.corpus is not None else []
    table = []
    for rank, c in enumerate(candidates, 1):
        row: list[Any] = [rank, str(c.id), c.token or f"(new) {evidence.NEW_TOKEN}", c.kind]
        row += ["yes" if c.special else "no", _typed(c)]
        row += [_norm(c), _nearest(c)] if report.rows is not None else []
        row += ["-" if c.occurrences is None else str(c.occurrences)] if report.corpus is not None else []
        table.append(row)
    keep = ("rank", "id", "token", "kind", "typed text", "in corpus") if report.rows is None else NARROW
    output.table(columns, table, to_answer=True, keep=keep, wide=wide)


def _typed(candidate: Evidence) -> str:
    if candidate.typed is None:
        return "-"
    if not candidate.typed:
        return "is not it"
    return "always is it" if candidate.typed_when_split else "is it unless split"


def _norm(candidate: Evidence) -> str:
    if candidate.norm is None:
        return "not read"
    ratio = "" if candidate.norm_ratio is None else f" ({candidate.norm_ratio:.2f}x)"
    return f"{candidate.norm:.4g}{ratio}" + (" ~zero" if candidate.near_zero else "")


def _nearest(candidate: Evidence) -> str:
    if candidate.nearest_id is None:
        return "-"
    same = " same bits" if candidate.nearest_id in candidate.identical_to else ""
    return f"{candidate.nearest_cosine:.4f} to {candidate.nearest_id}{same}"


def verdict_lines(report: Report) -> list[str]:
    best = report.best
    token = best.token or f"a new token {evidence.NEW_TOKEN}"
    lines = [f"verdict: {token} ({best.id}): {'; '.join(evidence.why_first(best))}"]
    behind: dict[str, list[Evidence]] = {}
    for candidate in report.candidates[1:]:
        behind.setdefault(evidence.why_behind(best, candidate), []).append(candidate)
    for reason, those in behind.items():
        first = those[0].token or f"a new token ({those[0].id})"
        more = f" and {len(those) - 1:,} more" if len(those) > 1 else ""
        lines.append(f"behind it: {first}{more}: {reason}")
    ruled_out = Counter(reason for candidate in report.ruled_out for reason in _short_reasons(candidate))
    if ruled_out:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in ruled_out.most_common())
        lines.append(f"ruled out: {len(report.ruled_out):,} ids ({counted})")
    return lines + ([report.configured.remark] if report.configured else [])


def _short_reasons(candidate: Evidence) -> Sequence[str]:
    return ["outside the embedding"] if candidate.inside is False else candidate.used_by[:1]
