"""RM-Bench (THU-KEG/RM-Bench, arXiv 2410.16184): three right answers against three wrong ones, in three styles.

The Hub has one file, `total_dataset.json`, which `datasets` reads as the split train. Its 1,327 rows are counted as a
whole: the sources that were read do not say how many there are of each domain.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmcli.errors import Skip
from rmcli.evaluate.suites.suite import (
    Asked,
    Figures,
    Judgement,
    Suite,
    Table,
    group_of,
    known,
    mean,
    on_hub,
    per_cent,
    text_of,
    texts_of,
)
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.fields import Row

STYLES = ("concise", "detailed plain", "detailed markdown")
DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": ("safety-refuse", "safety-response")}
PARTS = tuple(part for parts in DOMAINS.values() for part in parts)  # what a row's `domain` may be
LEVELS = ("easy", "normal", "hard")
ALL = "all"  # rows are counted together
OFFICIAL = {ALL: 1327}


def group(row: Row) -> tuple[Asked, PreferenceGroup]:
    """The chosen answers in the order of STYLES, then the rejected ones."""
    domain = known("domain", text_of(row, "domain"), PARTS)
    chosen, rejected = texts_of(row, "chosen"), texts_of(row, "rejected")
    if len(chosen) != len(STYLES) or len(rejected) != len(STYLES):
        raise Skip("wrong_answers", f"{len(chosen)} chosen and {len(rejected)} rejected")
    asked = Asked(domain, ALL, len(STYLES), str(row.get("id", "")))
    return asked, group_of(text_of(row, "prompt"), [*chosen, *rejected])


def rules(judged: Sequence[Judgement]) -> Figures:
    """M[i][j]: the share of rows with R(chosen[i]) > R(rejected[j]), i and j in the order of STYLES.

    `hard` is the mean above the diagonal (the chosen one is the plainer), `normal` on it, `easy` below it. A domain
    is the mean of the three, safety that of its two parts, the headline the mean of the four domains.
    """
    parts = {name: _part([scores for asked, scores in judged if asked.part == name]) for name in PARTS}
    domains = {
        name: {level: mean([parts[part][level] for part in of]) for level in (*LEVELS, "score")}
        for name, of in DOMAINS.items()
    }
    levels = {level: mean([domain[level] for domain in domains.values()]) for level in LEVELS}
    headline = mean([domain["score"] for domain in domains.values()])
    return {"headline": headline, **levels, "domains": domains, "parts": parts}


def _part(rows: Sequence[Sequence[float]]) -> Figures:
    """The matrix of the rows of one `domain`, and its means; None without any row."""
    if not rows:
        return {"rows": 0, **dict.fromkeys((*LEVELS, "score", "matrix"))}
    scores = np.asarray(rows, np.float64)
    chosen, rejected = scores[:, : len(STYLES)], scores[:, len(STYLES) :]
    matrix = (chosen[:, :, None] > rejected[:, None, :]).mean(0)
    above = np.triu_indices(len(STYLES), 1)
    levels = {
        "easy": float(matrix.T[above].mean()),
        "normal": float(matrix.diagonal().mean()),
        "hard": float(matrix[above].mean()),
    }
    return {"rows": len(rows), **levels, "score": mean(list(levels.values())), "matrix": matrix.tolist()}


def table(figures: Figures) -> Table:
    rows = []
    for name, of in DOMAINS.items():
        rows.append(_line(name, "", figures["domains"][name], sum(figures["parts"][part]["rows"] for part in of)))
        if len(of) > 1:
            rows += [_line(name, part, figures["parts"][part], figures["parts"][part]["rows"]) for part in of]
    total = sum(part["rows"] for part in figures["parts"].values())
    rows.append(_line("mean of the domains", "", {**figures, "score": figures["headline"]}, total))
    return Table(["domain", "part", "score, %", *(f"{level}, %" for level in LEVELS), "rows"], rows)


def _line(name: str, part: str, of: Figures, rows: int) -> list[Any]:
    return [name, part, *(per_cent(of[column]) for column in ("score", *LEVELS)), rows]


RM_BENCH = Suite(
    "rm-bench",
    "RM-Bench",
    (on_hub("THU-KEG/RM-Bench", "train"),),
    OFFICIAL,
    group,
    rules,
    table,
)
