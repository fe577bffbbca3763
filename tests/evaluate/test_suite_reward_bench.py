"""RewardBench's sections on cases counted by hand."""

import pytest

from rmcli.errors import Skip
from rmcli.evaluate.suites.reward_bench import COUNTS, REWARD_BENCH, SECTIONS, WEIGHTS
from rmcli.evaluate.suites.suite import Asked


def judged(subset: str, *pairs: tuple[float, float]) -> list:
    return [(Asked(subset, subset), pair) for pair in pairs]


RIGHT, WRONG, TIED = (2.0, 1.0), (1.0, 2.0), (1.5, 1.5)


def test_the_official_counts_are_the_rows_of_the_split_and_math_weighs_as_much_as_code():
    assert sum(COUNTS.values()) == 2985
    assert sum(WEIGHTS.values()) == 3522
    assert [sum(COUNTS[part] for part in parts) for parts in SECTIONS.values()] == [358, 456, 740, 1431]
    assert WEIGHTS["math-prm"] == sum(WEIGHTS[name] for name in COUNTS if name.startswith("hep-"))
    assert sorted(part for parts in SECTIONS.values() for part in parts) == sorted(COUNTS)


def test_a_section_weighs_its_subsets_by_the_official_counts_and_the_headline_the_sections_alike():
    figures = REWARD_BENCH.rules(
        [
            *judged("alpacaeval-easy", RIGHT, RIGHT, WRONG, RIGHT),  # 3/4
            *judged("mt-bench-med", WRONG, RIGHT),  # 1/2; Chat = (100 * 0.75 + 40 * 0.5) / 140 = 95 / 140
            *judged("llmbar-natural", RIGHT),  # Chat Hard = 1
            *judged("donotanswer", WRONG, WRONG, WRONG, RIGHT),  # Safety = 1/4
            *judged("math-prm", RIGHT),  # 1, weighs 984
            *judged("hep-cpp", WRONG),  # 0, weighs 164; Reasoning = 984 / 1148
        ]
    )
    scores = {name: section["score"] for name, section in figures["sections"].items()}
    assert scores == {
        "Chat": pytest.approx(95 / 140, abs=1e-12),
        "Chat Hard": 1.0,
        "Safety": 0.25,
        "Reasoning": pytest.approx(984 / 1148, abs=1e-12),
    }
    assert figures["headline"] == pytest.approx((95 / 140 + 1 + 0.25 + 984 / 1148) / 4, abs=1e-12)
    assert {name: section["rows"] for name, section in figures["sections"].items()} == {
        "Chat": 6,
        "Chat Hard": 1,
        "Safety": 4,
        "Reasoning": 2,
    }
    assert figures["subsets"]["alpacaeval-easy"]["accuracy"] == 0.75
    assert figures["subsets"]["hep-go"] == {"rows": 0, "accuracy": None, "interval": None}


def test_equal_scores_are_wrong_and_counted():
    figures = REWARD_BENCH.rules(judged("hep-js", TIED, RIGHT))
    assert figures["subsets"]["hep-js"]["accuracy"] == 0.5
    assert figures["tied_scores"] == 1


def test_a_section_without_rows_has_no_score_and_no_place_in_the_headline():
    figures = REWARD_BENCH.rules([*judged("mt-bench-easy", RIGHT), *judged("donotanswer", RIGHT, WRONG)])
    assert [section["score"] for section in figures["sections"].values()] == [1.0, None, 0.5, None]
    assert figures["headline"] == 0.75
    assert REWARD_BENCH.rules([])["headline"] is None


def test_the_table_has_each_section_its_subsets_and_the_headline():
    figures = REWARD_BENCH.rules([*judged("mt-bench-easy", RIGHT), *judged("donotanswer", RIGHT, WRONG, WRONG)])
    table = REWARD_BENCH.table(figures)
    assert table.columns == ["section", "subset", "score, %", "rows", "official rows"]
    assert len(table.rows) == 4 + 23 + 1
    assert table.rows[0] == ["Chat", "", 100.0, 1, 358]
    assert ["Safety", "donotanswer", 33.3, 3, 136] in table.rows
    assert ["Reasoning", "", "-", 0, 1431] in table.rows
    assert table.rows[-1] == ["mean of the sections", "", 66.7, 4, 2985]


ROW = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "hep-go", "id": 7, "chosen_model": "m"}


def test_a_row_is_a_pair_of_texts_the_chosen_one_first():
    asked, group = REWARD_BENCH.group(ROW)
    assert asked == Asked("hep-go", "hep-go", 1, "7")
    assert [[message["role"] for message in talk] for talk in group.conversations] == [["user", "assistant"]] * 2
    assert [talk[-1]["content"] for talk in group.conversations] == ["good", "bad"]
    assert group.comparisons == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subset": "hep-perl"}, "unknown_subset"),
        ({"prompt": [{"role": "user", "content": "p"}]}, "wrong_type"),  # a conversation, as older versions have it
        ({"chosen": ["good"]}, "wrong_type"),
        ({"rejected": None}, "wrong_type"),
        ({"subset": 3}, "wrong_type"),
    ],
)
def test_a_row_of_another_schema_is_left_out_by_name(change, reason):
    with pytest.raises(Skip) as skip:
        REWARD_BENCH.group({**ROW, **change})
    assert skip.value.reason == reason


def test_a_missing_column_is_named():
    with pytest.raises(Skip, match=r"^missing_column rejected$"):
        REWARD_BENCH.group({name: value for name, value in ROW.items() if name != "rejected"})
