"""JudgeBench (ScalerLab/JudgeBench, arXiv 2410.12784): pairs of which one answer is objectively right.

Two splits on the Hub, two files in its repository: `gpt`, answers of gpt-4o, and `claude`, of claude-3.5-sonnet. The
paper's table is of the first one; `responses` has both apart.
"""

from collections.abc import Sequence

from rmcli.errors import Skip
from rmcli.evaluate.suites.suite import (
    Asked,
    Figures,
    Judgement,
    Suite,
    Table,
    brief,
    group_of,
    on_hub,
    pair_figures,
    per_cent,
    share,
    text_of,
    tied_scores,
)
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.fields import Row

# The category by how a row's `source` begins.
CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
OFFICIAL = {"gpt": 350, "claude": 270}  # by how a row's `response_model` begins
UNKNOWN = "unknown"  # rows that do not say whose answers they are
LABELS = ("A>B", "B>A")


def group(row: Row) -> tuple[Asked, PreferenceGroup]:
    """The two responses, the right one first: the order that they stand in does not matter to a score."""
    source, label = text_of(row, "source"), text_of(row, "label")
    category = next((name for start, name in CATEGORIES.items() if source.startswith(start)), None)
    if category is None:
        raise Skip("unknown_subset", f"source is {brief(source)}")
    if label not in LABELS:
        raise Skip("unknown_label", f"label is {brief(label)}, not A>B or B>A")
    answers = [text_of(row, "response_A"), text_of(row, "response_B")]
    asked = Asked(category, _answered_by(row), id=str(row.get("pair_id", "")))
    return asked, group_of(text_of(row, "question"), answers if label == LABELS[0] else answers[::-1])


def _answered_by(row: Row) -> str:
    model = str(row.get("response_model", ""))
    return next((name for name in OFFICIAL if model.startswith(name)), UNKNOWN)


def rules(judged: Sequence[Judgement]) -> Figures:
    """A row counts 1 when the right response has the higher score: the headline over all rows, and by category.

    Equal scores count as wrong, as a judge does that changes its mind with the order of the responses.
    """
    found = pair_figures(judged)
    answered_by = {name: [one for one in judged if one[0].counted == name] for name in (*OFFICIAL, UNKNOWN)}
    return {
        "headline": _all(judged)["accuracy"],
        "categories": {name: found.get(name) or share(()) for name in CATEGORIES.values()},
        "responses": {name: _all(rows) for name, rows in answered_by.items() if rows or name != UNKNOWN},
        "tied_scores": tied_scores(judged),
    }


def _all(judged: Sequence[Judgement]) -> Figures:
    return share([float(first > second) for _, (first, second) in judged])


def table(figures: Figures) -> Table:
    rows = [[name, per_cent(of["accuracy"]), of["rows"]] for name, of in figures["categories"].items()]
    rows += [
        [f"responses of {name}", per_cent(of["accuracy"]), of["rows"]] for name, of in figures["responses"].items()
    ]
    total = sum(of["rows"] for of in figures["categories"].values())
    return Table(["category", "accuracy, %", "rows"], [*rows, ["all", per_cent(figures["headline"]), total]])


JUDGE_BENCH = Suite(
    "judge-bench",
    "JudgeBench",
    tuple(on_hub("ScalerLab/JudgeBench", split) for split in OFFICIAL),
    OFFICIAL,
    group,
    rules,
    table,
)
