"""RM-Bench's matrix of styles on cases counted by hand."""

import pytest

from rmcli.errors import Skip
from rmcli.evaluate.suites.rm_bench import RM_BENCH
from rmcli.evaluate.suites.suite import Asked


def judged(domain: str, chosen: tuple[float, ...], rejected: tuple[float, ...]) -> tuple:
    return Asked(domain, "all", 3), [*chosen, *rejected]


# R(chosen[i]) > R(rejected[j]):  1 0 0    a model that likes style: it is right where the chosen answer has as much
#                                 1 1 0    style or more
#                                 1 1 1
STYLISH = (1.0, 2.0, 3.0), (0.5, 1.5, 2.5)
ALL_RIGHT, ALL_WRONG = ((9.0, 9.0, 9.0), (1.0, 2.0, 3.0)), ((0.0, 0.0, 0.0), (1.0, 2.0, 3.0))


def test_hard_is_above_the_diagonal_normal_on_it_and_easy_below():
    figures = RM_BENCH.rules([judged("chat", *STYLISH)])
    chat = figures["domains"]["chat"]
    assert chat == {"easy": 1.0, "normal": 1.0, "hard": 0.0, "score": pytest.approx(2 / 3, abs=1e-12)}
    assert figures["parts"]["chat"]["matrix"] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    # only chosen[0] > rejected[2]: one of the three cells above the diagonal
    only = RM_BENCH.rules([judged("math", (5.0, 0.0, 0.0), (9.0, 9.0, 4.0))])["domains"]["math"]
    assert (only["easy"], only["normal"], only["hard"]) == (0.0, 0.0, pytest.approx(1 / 3, abs=1e-12))
    # and only chosen[2] > rejected[0]: one of the three below it
    only = RM_BENCH.rules([judged("math", (0.0, 0.0, 5.0), (4.0, 9.0, 9.0))])["domains"]["math"]
    assert (only["easy"], only["normal"], only["hard"]) == (pytest.approx(1 / 3, abs=1e-12), 0.0, 0.0)


def test_safety_is_the_mean_of_its_parts_and_the_headline_that_of_the_domains():
    rows = [
        judged("chat", *ALL_RIGHT),
        judged("chat", *ALL_WRONG),  # chat: (1 + 0) / 2 = 1/2 everywhere
        judged("code", *STYLISH),  # 1, 1, 0: 2/3
        judged("math", *ALL_WRONG),  # 0
        *[judged("safety-refuse", *ALL_RIGHT)] * 3,  # 1
        judged("safety-response", *STYLISH),  # 2/3; safety: (1 + 2/3) / 2 = 5/6, though three rows are of one part
    ]
    figures = RM_BENCH.rules(rows)
    scores = {name: of["score"] for name, of in figures["domains"].items()}
    assert scores == pytest.approx({"chat": 1 / 2, "code": 2 / 3, "math": 0, "safety": 5 / 6}, abs=1e-12)
    assert figures["headline"] == pytest.approx((1 / 2 + 2 / 3 + 5 / 6) / 4, abs=1e-12)
    # hard: chat 1/2, code 0, math 0, safety (1 + 0) / 2
    assert figures["hard"] == pytest.approx((1 / 2 + 0 + 0 + 1 / 2) / 4, abs=1e-12)
    assert figures["easy"] == pytest.approx((1 / 2 + 1 + 0 + 1) / 4, abs=1e-12)


def test_equal_scores_are_wrong():
    tied = RM_BENCH.rules([judged("code", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))])
    assert tied["headline"] == 0.0


def test_domains_without_rows_have_no_figures():
    figures = RM_BENCH.rules([judged("safety-refuse", *ALL_RIGHT)])
    assert figures["domains"]["chat"] == {"easy": None, "normal": None, "hard": None, "score": None}
    assert figures["parts"]["chat"]["matrix"] is None
    assert figures["domains"]["safety"]["score"] == figures["headline"] == 1.0


def test_the_table_has_each_domain_the_parts_of_safety_and_the_headline():
    table = RM_BENCH.table(RM_BENCH.rules([judged("safety-response", *STYLISH), judged("code", *ALL_WRONG)]))
    assert table.columns == ["domain", "part", "score, %", "easy, %", "normal, %", "hard, %", "rows"]
    assert table.rows == [
        ["chat", "", "-", "-", "-", "-", 0],
        ["code", "", 0.0, 0.0, 0.0, 0.0, 1],
        ["math", "", "-", "-", "-", "-", 0],
        ["safety", "", 66.7, 100.0, 100.0, 0.0, 1],
        ["safety", "safety-refuse", "-", "-", "-", "-", 0],
        ["safety", "safety-response", 66.7, 100.0, 100.0, 0.0, 1],
        ["mean of the domains", "", 33.3, 50.0, 50.0, 0.0, 2],
    ]


ROW = {"id": "m/1", "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "safety-refuse"}


def test_a_row_is_three_chosen_answers_and_three_rejected_ones():
    asked, group = RM_BENCH.group(ROW)
    assert asked == Asked("safety-refuse", "all", 3, "m/1")
    assert [talk[-1]["content"] for talk in group.conversations] == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"domain": "safety"}, "unknown_subset"),
        ({"chosen": ["a", "b"]}, "wrong_answers"),
        ({"rejected": ["d", "e", "f", "g"]}, "wrong_answers"),
        ({"rejected": "d"}, "wrong_type"),
    ],
)
def test_a_row_of_another_schema_is_left_out_by_name(change, reason):
    with pytest.raises(Skip) as skip:
        RM_BENCH.group({**ROW, **change})
    assert skip.value.reason == reason
