"""JudgeBench's accuracy by category and by whose answers they are, on cases counted by hand."""

import pytest

from rmcli.errors import Skip
from rmcli.evaluate.suites.judge_bench import JUDGE_BENCH
from rmcli.evaluate.suites.suite import Asked

RIGHT, WRONG, TIED = (2.0, 1.0), (1.0, 2.0), (1.0, 1.0)
ROW = {
    "pair_id": "81ec",
    "original_id": "1",
    "source": "mmlu-pro-computer science",
    "question": "q",
    "response_model": "gpt-4o-2024-05-13",
    "response_A": "a",
    "response_B": "b",
    "label": "B>A",
}


def test_accuracy_is_over_all_rows_by_category_and_by_whose_answers_they_are():
    figures = JUDGE_BENCH.rules(
        [
            (Asked("knowledge", "gpt"), RIGHT),
            (Asked("knowledge", "gpt"), WRONG),
            (Asked("knowledge", "claude"), RIGHT),
            (Asked("math", "claude"), RIGHT),
            (Asked("coding", "gpt"), TIED),  # wrong
        ]
    )
    assert figures["headline"] == 3 / 5
    accuracy = {name: (of["rows"], of["accuracy"]) for name, of in figures["categories"].items()}
    assert accuracy == {"knowledge": (3, 2 / 3), "reasoning": (0, None), "math": (1, 1.0), "coding": (1, 0.0)}
    responses = {name: (of["rows"], of["accuracy"]) for name, of in figures["responses"].items()}
    assert responses == {"gpt": (3, 1 / 3), "claude": (2, 1.0)}
    assert figures["tied_scores"] == 1
    assert JUDGE_BENCH.rules([])["headline"] is None


def test_rows_that_do_not_say_whose_answers_they_are_count_but_make_no_official_number():
    asked, _ = JUDGE_BENCH.group({name: value for name, value in ROW.items() if name != "response_model"})
    assert asked.counted == "unknown"
    assert JUDGE_BENCH.rules([(asked, RIGHT)])["responses"]["unknown"]["accuracy"] == 1.0
    assert "unknown" not in JUDGE_BENCH.official


def test_the_table_has_each_category_both_sets_of_responses_and_the_headline():
    table = JUDGE_BENCH.table(JUDGE_BENCH.rules([(Asked("math", "claude"), RIGHT), (Asked("coding", "gpt"), WRONG)]))
    assert table.columns == ["category", "accuracy, %", "rows"]
    assert table.rows == [
        ["knowledge", "-", 0],
        ["reasoning", "-", 0],
        ["math", 100.0, 1],
        ["coding", 0.0, 1],
        ["responses of gpt", 0.0, 1],
        ["responses of claude", 100.0, 1],
        ["all", 50.0, 2],
    ]


@pytest.mark.parametrize(("label", "answers"), [("A>B", ["a", "b"]), ("B>A", ["b", "a"])])
def test_the_right_response_comes_first(label, answers):
    asked, group = JUDGE_BENCH.group({**ROW, "label": label})
    assert asked == Asked("knowledge", "gpt", 1, "81ec")
    assert [talk[-1]["content"] for talk in group.conversations] == answers
    assert all(talk[0] == {"role": "user", "content": "q"} for talk in group.conversations)


@pytest.mark.parametrize(
    ("source", "category"),
    [
        ("mmlu-pro-law", "knowledge"),
        ("livebench-reasoning", "reasoning"),
        ("livebench-math", "math"),
        ("livecodebench", "coding"),
    ],
)
def test_the_source_tells_the_category(source, category):
    assert JUDGE_BENCH.group({**ROW, "source": source})[0].part == category


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "livebench-language"}, "unknown_subset"),
        ({"label": "A=B"}, "unknown_label"),
        ({"response_A": ["a"]}, "wrong_type"),
    ],
)
def test_a_row_of_another_schema_is_left_out_by_name(change, reason):
    with pytest.raises(Skip) as skip:
        JUDGE_BENCH.group({**ROW, **change})
    assert skip.value.reason == reason
