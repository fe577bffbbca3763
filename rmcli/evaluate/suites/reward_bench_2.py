"""RewardBench 2 (allenai/reward-bench-2, split test; arXiv 2506.01937): the best of four, and Ties.

Rules as in the package rewardbench 0.1.4 (`reroll_and_score_dataset`); Ties: see ties.py.
"""

import re
from collections.abc import Sequence

from rmcli.errors import Skip
from rmcli.evaluate.suites import ties
from rmcli.evaluate.suites.suite import (
    Asked,
    Figures,
    Judgement,
    Suite,
    Table,
    brief,
    group_of,
    known,
    mean,
    on_hub,
    per_cent,
    share,
    text_of,
    texts_of,
)
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.fields import Row

TIES = "Ties"
COUNTS = {"Factuality": 475, "Focus": 495, "Math": 183, "Precise IF": 160, "Safety": 450, TIES: 102}  # 1,865
BEST_OF = 4


def group(row: Row) -> tuple[Asked, PreferenceGroup]:
    """The right answers, then the wrong ones: 1 and 3, in Ties 1 or more of either.

    `num_correct`, `num_incorrect` and `total_completions` may be missing; where they are there they must be true.
    """
    subset = known("subset", text_of(row, "subset"), COUNTS)
    right, wrong = texts_of(row, "chosen"), texts_of(row, "rejected")
    _check_answers(row, subset == TIES, len(right), len(wrong))
    own = _id_of_ties(row, len(right)) if subset == TIES else str(row.get("id", ""))
    return Asked(subset, subset, len(right), own), group_of(text_of(row, "prompt"), [*right, *wrong])


def _check_answers(row: Row, is_of_ties: bool, right: int, wrong: int) -> None:
    said = {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong}
    for name, count in said.items():
        if row.get(name) not in (None, count):
            raise Skip("wrong_answers", f"{name} is {brief(row[name])}, and there are {count}")
    if not (right and wrong) if is_of_ties else (right, wrong) != (1, BEST_OF - 1):
        raise Skip("wrong_answers", f"{right} chosen and {wrong} rejected")


def _id_of_ties(row: Row, right: int) -> str:
    own = text_of(row, "id")
    if not re.fullmatch(r"(ref|tied):\d+", own):
        raise Skip("unknown_id", f"id is {brief(own)}, not ref:N or tied:N")
    if own.startswith("ref") and right != 1:
        raise Skip("wrong_answers", f"{own} has {right} chosen")
    return own


def rules(judged: Sequence[Judgement]) -> Figures:
    """A row counts 1 when its right answer has the highest score of all, 1/k when k answers share that place.

    The headline is the plain mean of the six subsets; one without rows weighs nothing.
    """
    subsets: dict[str, Figures] = {}
    for name in COUNTS:
        rows = [(asked, scores) for asked, scores in judged if asked.part == name]
        subsets[name] = ties.figures(rows) if name == TIES else _best_of([scores for _, scores in rows])
    return {"headline": mean([subset["score"] for subset in subsets.values()]), "subsets": subsets}


def _best_of(rows: Sequence[Sequence[float]]) -> Figures:
    found = share([_credit(scores) for scores in rows])
    return {"rows": found["rows"], "score": found["accuracy"], "interval": found["interval"]}


def _credit(scores: Sequence[float]) -> float:
    """Of a row whose first answer is the right one."""
    highest = max(scores)
    return 1 / list(scores).count(highest) if scores[0] == highest else 0.0


def table(figures: Figures) -> Table:
    subsets = figures["subsets"]
    rows = [[name, per_cent(of["score"]), of["rows"], COUNTS[name]] for name, of in subsets.items()]
    total = sum(of["rows"] for of in subsets.values())
    rows.append(["mean of the subsets", per_cent(figures["headline"]), total, sum(COUNTS.values())])
    return Table(["subset", "score, %", "rows", "official rows"], rows)


REWARD_BENCH_2 = Suite(
    "reward-bench-2",
    "RewardBench 2",
    (on_hub("allenai/reward-bench-2", "test"),),
    COUNTS,
    group,
    rules,
    table,
)
