"""RewardBench (allenai/reward-bench, split filtered; arXiv 2403.13787): four sections of pairs.

Rules as in the package rewardbench 0.1.4 (`calculate_scores_per_section`).
"""

from collections.abc import Sequence

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
    pair_figures,
    per_cent,
    share,
    text_of,
    tied_scores,
)
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.fields import Row

SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst"),
        *("llmbar-adver-GPTOut", "llmbar-adver-manual"),
    ),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
# Rows of the split `filtered`, 2,985.
COUNTS = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
    "mt-bench-hard": 37,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
    "math-prm": 447,
    **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
}
# What a subset weighs in its section: its rows, but for math, which weighs as much as all code (6 x 164).
WEIGHTS = {**COUNTS, "math-prm": 984}


def group(row: Row) -> tuple[Asked, PreferenceGroup]:
    """A pair of texts, the chosen one first."""
    subset = known("subset", text_of(row, "subset"), COUNTS)
    answers = [text_of(row, "chosen"), text_of(row, "rejected")]
    return Asked(subset, subset, id=str(row.get("id", ""))), group_of(text_of(row, "prompt"), answers)


def rules(judged: Sequence[Judgement]) -> Figures:
    """A row counts 1 when R(chosen) > R(rejected). A section is the mean of its subsets, weighted; see WEIGHTS.

    The headline is the plain mean of the sections. A subset without rows weighs nothing, nor does such a section.
    """
    found = pair_figures(judged)
    subsets = {name: found.get(name) or share(()) for name in COUNTS}
    sections = {name: _section(parts, subsets) for name, parts in SECTIONS.items()}
    return {
        "headline": mean([section["score"] for section in sections.values()]),
        "sections": sections,
        "subsets": subsets,
        "tied_scores": tied_scores(judged),
    }


def _section(parts: Sequence[str], subsets: dict[str, Figures]) -> Figures:
    there = [name for name in parts if subsets[name]["rows"]]
    weight = sum(WEIGHTS[name] for name in there)
    weighed = sum(WEIGHTS[name] * subsets[name]["accuracy"] for name in there)
    rows = sum(subsets[name]["rows"] for name in there)
    return {"score": weighed / weight if weight else None, "rows": rows}


def table(figures: Figures) -> Table:
    rows = []
    for name, parts in SECTIONS.items():
        section = figures["sections"][name]
        rows.append([name, "", per_cent(section["score"]), section["rows"], sum(COUNTS[part] for part in parts)])
        subsets = {part: figures["subsets"][part] for part in parts}
        rows += [[name, part, per_cent(of["accuracy"]), of["rows"], COUNTS[part]] for part, of in subsets.items()]
    total = sum(section["rows"] for section in figures["sections"].values())
    rows.append(["mean of the sections", "", per_cent(figures["headline"]), total, sum(COUNTS.values())])
    return Table(["section", "subset", "score, %", "rows", "official rows"], rows)


REWARD_BENCH = Suite(
    "reward-bench",
    "RewardBench",
    (on_hub("allenai/reward-bench", "filtered"),),
    COUNTS,
    group,
    rules,
    table,
)
