"""Named map functions on rows in the real schemas, comparisons and orders, recognition, plugins, the list."""

import gzip
import itertools
import json
import sys
from collections import Counter

import pytest

from rmcli.errors import ConfigError, Skip
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.records import PAIR, Comparison, PreferenceGroup
from rmcli.rows.map_fns import comparisons, data_sets
from rmcli.rows.map_fns.apply import apply as apply_function
from rmcli.rows.map_fns.apply import find_map_function
from rmcli.rows.map_fns.known import NAMED, recognise
from rmcli.tokens.encode import is_ordered, prompt_of
from support.places import REPOSITORY, write_lines
from support.wide import wide_tiny

TIE = (Comparison(0, 1, 0.5),)


def turns(*contents: str) -> tuple:
    """User and assistant, in turn."""
    return tuple(
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    )


def apply(name: str, row: object) -> PreferenceGroup:
    return apply_function(NAMED[name], row, "here")


def reason_of(name: str, row: object) -> str:
    """Why the row is left out, which docs/format.md must explain."""
    with pytest.raises(Skip) as skip:
        apply(name, row)
    assert f"`{skip.value.reason.split()[0]}" in (REPOSITORY / "docs" / "format.md").read_text()
    return skip.value.reason


def answers_of(group: PreferenceGroup) -> list[str]:
    return [conversation[-1]["content"] for conversation in group.conversations]


def read_real(real_data, name: str) -> list[dict]:
    with gzip.open(real_data / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# --- rows as the data sets have them ---

WHOLE = {
    "chosen": [{"content": "q", "role": "user"}, {"content": "good", "role": "assistant"}],
    "rejected": [{"content": "q", "role": "user"}, {"content": "bad", "role": "assistant"}],
}
RATED = {"helpfulness": 3, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
HELPSTEER2 = [
    {"prompt": "q", "response": "bad", **RATED},
    {"prompt": "q", "response": "good", **RATED, "helpfulness": 4, "verbosity": 1},
]
WON = {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0}
ARENA = {
    "id": 30192,
    "model_a": "a",
    "model_b": "b",
    "prompt": '["q", "and?"]',
    "response_a": '["r", "bad"]',
    "response_b": '["s", "good"]',
    **WON,
    "winner_model_b": 1,
}
REPLY = [{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]
ROWS = {
    "canonical": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "orpo_dpo_mix_40k": {"source": "s", "prompt": "q", "question": "q", **WHOLE},
    "intel_orca_dpo": {"system": "", "question": "q", "chosen": "good", "rejected": "bad"},
    "hh_rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    "ultrafeedback_binarized": {
        "prompt": "q",
        "prompt_id": "1f",
        **WHOLE,
        "messages": WHOLE["chosen"],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    "skywork": {**WHOLE, "source": "magpie"},
    "helpsteer2": HELPSTEER2,
    "helpsteer3": {
        "domain": "code",
        "language": "python",
        "context": [{"role": "user", "content": "q"}],
        "response1": "bad",
        "response2": "good",
        "overall_preference": 2,
        "individual_preference": [{"score": 2, "reasoning": "r", "feedback1": "f", "feedback2": "g"}],
    },
    "nectar": {
        "prompt": "\n\nHuman: q \n\nAssistant: ",
        "answers": [{"answer": "bad", "model": "m", "rank": 2.0}, {"answer": "good", "model": "n", "rank": 1.0}],
        "turns": 1,
        "num_responses": 2,
        "source": ["lmsys"],
        "good_natured": True,
    },
    "shp": {
        "post_id": "p",
        "history": "q",
        "human_ref_A": "bad",
        "human_ref_B": "good",
        "labels": 0,
        "score_A": 4,
        "score_B": 12,
        "score_ratio": 3.0,
    },
    "pku_saferlhf": {
        "prompt": "q",
        "response_0": "bad",
        "response_1": "good",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "arena": ARENA,
    "sharegpt_ranking": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "openai_dpo": {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": REPLY[0],
        "non_preferred_output": REPLY[1],
    },
    "instruction": {"instruction": "q", "input": "", "output": "good", "chosen": "good", "rejected": "bad"},
    "reward_bench": {
        "prompt": "q",
        "chosen": "good",
        "chosen_model": "m",
        "rejected": "bad",
        "rejected_model": "n",
        "subset": "xstest-should-refuse",
        "id": 7,
    },
    "reward_bench_2": {
        "id": "0",
        "prompt": "q",
        "chosen": ["good"],
        "rejected": ["bad"],
        "num_correct": 1,
        "num_incorrect": 1,
        "total_completions": 2,
        "models": ["m"],
        "subset": "Factuality",
        "additional_metadata": {"category": None},
    },
    "xtuner": {"prompt": [{"role": "user", "content": "q"}], "chosen": REPLY[0], "rejected": REPLY[1]},
    "finegrained_qa": {
        "question": "q",
        "passages": [["title", "one.", "two."], ["other", "three."]],
        **{f"prediction {number}": text for number, text in enumerate(("third", "first", "fourth", "second"), 1)},
        "preference": [2, 1, 2, 1, 1, 2],
    },
}
MARGINS = {"ultrafeedback_binarized": 2.5, "helpsteer2": 1.05, "helpsteer3": 2.0}
MORE_TURNS = {"arena", "finegrained_qa"}  # have a test of their own


@pytest.mark.parametrize("name", sorted(ROWS.keys() - MORE_TURNS))
def test_chosen_comes_first_and_rejected_second_whatever_the_schema(name):
    group = apply(name, ROWS[name])
    assert group.conversations == (turns("q", "good"), turns("q", "bad"))
    (comparison,) = group.comparisons
    assert comparison == (0, 1, 1.0, pytest.approx(MARGINS.get(name, 0.0), abs=1e-12))
    assert group.weight == 1.0


def test_every_named_function_has_a_row_here_and_a_description():
    assert NAMED.keys() - ROWS.keys() == {"checkable_tasks", "pku_saferlhf_safer"}
    assert all(known.description and known.columns for known in NAMED.values())


OPTIONAL = {("sharegpt_ranking", "system"), ("instruction", "input"), ("canonical", "prompt")}


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name in sorted(ROWS) for column in NAMED[name].columns if (name, column) not in OPTIONAL],
)
def test_a_missing_column_is_named(name, column):
    rows = ROWS[name] if name == "helpsteer2" else [ROWS[name]]
    lacking = [{key: value for key, value in row.items() if key != column} for row in rows]
    assert reason_of(name, lacking if name == "helpsteer2" else lacking[0]) == f"missing_column {column}"


# --- canonical ---


def test_canonical_reads_label_margin_and_weight_of_a_pair():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "label": 0.75, "margin": 2, "weight": 0.5}
    group = apply("canonical", row)
    assert group.comparisons == (Comparison(0, 1, 0.75, 2.0),)
    assert group.weight == 0.5
    assert apply("canonical", {**row, "label": 0.5}).comparisons == (Comparison(0, 1, 0.5, 2.0),)
    nothing = {"label": None, "margin": None, "weight": None, "responses": None}
    assert apply("canonical", {**row, **nothing}) == PreferenceGroup((turns("q", "a"), turns("q", "b")))


def test_a_label_below_one_half_turns_the_pair_round():
    group = apply("canonical", {"prompt": "q", "chosen": "a", "rejected": "b", "label": 0.25, "margin": 3})
    assert answers_of(group) == ["b", "a"]
    assert group.comparisons == (Comparison(0, 1, 0.75, 3.0),)
    assert apply("canonical", {"prompt": "q", "chosen": "a", "rejected": "b", "label": 0}).comparisons == PAIR


def test_score_keeps_the_rows_own_order():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "label": 0}
    group = apply_function(NAMED["canonical"], row, "here", best_first=False)
    assert answers_of(group) == ["a", "b"]
    assert group.comparisons == (Comparison(1, 0),)


ALL_THREE = (Comparison(0, 1), Comparison(0, 2), Comparison(1, 2))


@pytest.mark.parametrize(
    ("known", "answers", "expected"),
    [
        ({"ranks": [2, 3, 1]}, ["c", "a", "b"], ALL_THREE),
        ({"ranks": [20, 30.5, -1]}, ["c", "a", "b"], ALL_THREE),
        (
            {"ranks": [1, 2, 1]},
            ["a", "b", "c"],
            (Comparison(0, 1), Comparison(0, 2, 0.5), Comparison(2, 1)),
        ),
        (
            {"scores": [0.5, 3, 1]},
            ["b", "c", "a"],
            (Comparison(0, 1, 1.0, 2.0), Comparison(0, 2, 1.0, 2.5), Comparison(1, 2, 1.0, 0.5)),
        ),
        ({"comparisons": [[2, 1], [1, 0]]}, ["c", "b", "a"], (Comparison(0, 1), Comparison(1, 2))),
        (
            {"comparisons": [{"first": 0, "second": 2, "label": None}, [1, 2, 0.5, 0.25]]},
            ["a", "b", "c"],
            (Comparison(0, 2), Comparison(1, 2, 0.5, 0.25)),
        ),
    ],
)
def test_canonical_reads_k_responses_by_ranks_scores_or_comparisons(known, answers, expected):
    group = apply("canonical", {"prompt": "q", "responses": ["a", "b", "c"], **known})
    assert answers_of(group) == answers
    assert group.comparisons == expected
    assert all(conversation[0] == turns("q")[0] for conversation in group.conversations)


def test_responses_may_be_messages_with_or_without_the_prompt():
    responses = [REPLY[0], [*turns("q"), *REPLY[1]], "worse"]
    group = apply("canonical", {"prompt": "q", "responses": responses, "ranks": [1, 2, 3]})
    assert group.conversations == (turns("q", "good"), turns("q", "bad"), turns("q", "worse"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 1.5}, "bad_label"),
        ({"label": -0.1}, "bad_label"),
        ({"label": "chosen"}, "bad_label"),
        ({"label": True}, "bad_label"),
        ({"label": float("nan")}, "bad_label"),
        ({"margin": -1}, "bad_margin"),
        ({"margin": float("inf")}, "bad_margin"),
        ({"margin": "2"}, "bad_margin"),
        ({"weight": True}, "bad_weight"),
        ({"weight": 0}, "bad_weight"),
        ({"responses": ["a", "b"]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "ranks": [1, 2], "scores": [2, 1]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "ranks": [1]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "ranks": [1, None]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "ranks": 1}, "bad_comparisons"),
        ({"responses": "ab", "ranks": [1, 2]}, "wrong_type"),
        ({"responses": ["a", "b"], "comparisons": []}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[0]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [7]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[0, 2]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[-1, 0]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[0, 0]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[0, True]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [[0, 1], [1, 0]]}, "bad_comparisons"),
        ({"responses": ["a", "b"], "comparisons": [{"first": 0, "better": 1}]}, "bad_comparisons"),
        ({"responses": ["a", "b", "c"], "comparisons": [[0, 1]]}, "bad_comparisons"),
        ({"responses": ["a", "b", "a"], "ranks": [1, 2, 3]}, "chosen_equals_rejected"),
        ({"chosen": "\ud800"}, "bad_json"),
    ],
)
def test_what_is_wrong_with_a_group_is_its_reason(change, reason):
    assert reason_of("canonical", {"prompt": "q", "chosen": "a", "rejected": "b", **change}) == reason


def test_a_group_of_nothing_but_ties_is_kept():
    group = apply("canonical", {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [4, 4, 4]})
    assert [comparison.label for comparison in group.comparisons] == [0.5, 0.5, 0.5]


def test_equal_answers_may_tie_in_a_larger_group():
    group = apply("canonical", {"prompt": "q", "responses": ["a", "b", "a"], "ranks": [1, 2, 1]})
    assert answers_of(group) == ["a", "b", "a"]


# --- orders ---


def test_every_order_of_four_is_found_again_from_its_pairs_and_from_its_neighbours():
    for ranks in itertools.permutations((1, 2, 3, 4)):
        best_first = tuple(sorted(range(4), key=lambda index: ranks[index]))
        assert comparisons.order_of(comparisons.from_ranks(ranks), 4) == best_first
        neighbours = [Comparison(*two) for two in itertools.pairwise(best_first)]
        assert comparisons.order_of(neighbours, 4) == best_first


@pytest.mark.parametrize(
    "known",
    [
        [(0, 1), (1, 2), (2, 0)],  # a cycle
        [(0, 1), (0, 2)],  # 1 and 2 are not compared
        [(0, 1), (1, 2), (0, 2, 0.5)],  # a tie against the order
        [(0, 1)],
    ],
)
def test_no_order_follows_from_ties_cycles_and_gaps(known):
    assert comparisons.order_of([Comparison(*entry) for entry in known], 3) is None


def test_a_label_below_one_half_counts_for_the_second():
    assert comparisons.order_of([Comparison(0, 1, 0.0), Comparison(0, 2, 0.9)], 3) == (1, 0, 2)
    assert comparisons.order_of([Comparison(2, 0, 0.2), Comparison(2, 1, 1.0)], 3) == (0, 2, 1)


def test_a_group_in_strict_order_is_ordered_for_training_and_others_are_not():
    strict = apply("canonical", {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [3, 1, 2]})
    tied = apply("canonical", {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [3, 1, 1]})
    assert is_ordered(strict.comparisons, 3)
    assert not is_ordered(tied.comparisons, 3)


# --- quirks of the data sets ---


def test_real_orpo_rows(real_data):
    rows = read_real(real_data, "orpo_dpo_mix_sample.jsonl.gz")
    assert len(rows) == 300
    for row in rows:
        group = apply("orpo_dpo_mix_40k", row)
        assert prompt_of(group)[-1]["content"] == row["prompt"]
        assert answers_of(group) == [row["chosen"][-1]["content"], row["rejected"][-1]["content"]]


def test_real_orca_rows(real_data):
    row = read_real(real_data, "orca_dpo_pairs_sample.jsonl.gz")[0]
    group = apply("intel_orca_dpo", row)
    assert [message["role"] for message in group.conversations[0]] == ["system", "user", "assistant"]
    said = [message["content"] for message in group.conversations[1]]
    assert said == [row["system"], row["question"], row["rejected"]]


def test_real_hh_rows(real_data):
    group = apply("hh_rlhf", read_real(real_data, "hh_rlhf_harmless.jsonl.gz")[0])
    assert [message["role"] for message in group.conversations[0]] == ["user", "assistant"] * 3
    assert group.conversations[0][0]["content"] == "what are some pranks with a pen i can do?"
    assert group.conversations[0][2]["content"] == "yep"


def test_a_speaker_needs_a_blank_line_before_it():
    text = "\n\nHuman: a\nHuman: still a\n\nAssistant:"
    assert data_sets.hh_rlhf({"chosen": text, "rejected": text}).conversations[0] == turns("a\nHuman: still a", "")
    assert reason_of("hh_rlhf", {"chosen": "no markers", "rejected": text}) == "wrong_type"


def test_ultrafeedback_scores_make_margins_and_ties():
    row = ROWS["ultrafeedback_binarized"]
    assert apply("ultrafeedback_binarized", {**row, "score_rejected": 8.5}).comparisons == TIE
    assert reason_of("ultrafeedback_binarized", {**row, "score_rejected": 9}) == "bad_margin"
    assert reason_of("ultrafeedback_binarized", {**row, "score_chosen": None}) == "bad_margin"


def test_helpsteer2_takes_the_rows_of_a_prompt_together():
    known = NAMED["helpsteer2"]
    assert [known.rows_key(row) for row in HELPSTEER2] == ["q", "q"]
    assert reason_of("helpsteer2", HELPSTEER2[0]) == "single_response"
    assert reason_of("helpsteer2", [HELPSTEER2[0], {**HELPSTEER2[0], "response": "other"}]) == "tie"
    assert reason_of("helpsteer2", [HELPSTEER2[0], {**HELPSTEER2[1], "verbosity": 5}]) == "wrong_type"
    three = apply("helpsteer2", [*HELPSTEER2, {**HELPSTEER2[1], "response": "as good"}])
    assert answers_of(three) == ["bad", "good", "as good"]
    assert three.comparisons == (Comparison(1, 0, 1.0, 1.05), Comparison(2, 0, 1.0, 1.05), Comparison(1, 2, 0.5))


def test_helpsteer2_marks_the_turns_of_a_prompt():
    prompt = "first\n<extra_id_1>Assistant\nreply\n<extra_id_1>User\nsecond"
    group = apply("helpsteer2", [{**row, "prompt": prompt} for row in HELPSTEER2])
    assert group.conversations[0] == turns("first", "reply", "second", "good")


@pytest.mark.parametrize(
    ("preference", "first", "margin"), [(-3, "bad", 3.0), (-1, "bad", 1.0), (1, "good", 1.0), (3, "good", 3.0)]
)
def test_helpsteer3_prefers_response_1_when_negative(preference, first, margin):
    group = apply("helpsteer3", {**ROWS["helpsteer3"], "overall_preference": preference})
    assert answers_of(group)[0] == first
    assert group.comparisons == (Comparison(0, 1, 1.0, margin),)


def test_helpsteer3_leaves_ties_out_and_reads_a_text_as_context():
    assert reason_of("helpsteer3", {**ROWS["helpsteer3"], "overall_preference": 0}) == "tie"
    assert reason_of("helpsteer3", {**ROWS["helpsteer3"], "overall_preference": None}) == "wrong_type"
    assert prompt_of(apply("helpsteer3", {**ROWS["helpsteer3"], "context": "q"})) == turns("q")


def test_nectar_sorts_seven_answers_and_keeps_equal_ranks_as_ties():
    ranks = (3.0, 1.0, 7.0, 5.0, 2.0, 6.0, 4.0)
    seven = {**ROWS["nectar"], "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c \n\nAssistant: "}
    seven["answers"] = [{"answer": f"rank {rank:.0f}", "model": "m", "rank": rank} for rank in ranks]
    group = apply("nectar", seven)
    assert answers_of(group) == [f"rank {rank}" for rank in range(1, 8)]
    assert prompt_of(group) == turns("a", "b", "c")
    assert len(group.comparisons) == 21
    assert is_ordered(group.comparisons, 7)
    seven["answers"][0] = {**seven["answers"][0], "rank": 1.0}
    tied = apply("nectar", seven)
    assert Counter(comparison.label for comparison in tied.comparisons) == {1.0: 20, 0.5: 1}
    assert Comparison(0, 1, 0.5) in tied.comparisons


def test_shp_label_1_is_a():
    assert answers_of(apply("shp", {**ROWS["shp"], "labels": 1})) == ["bad", "good"]
    assert reason_of("shp", {**ROWS["shp"], "labels": 2}) == "wrong_type"


def test_pku_saferlhf_by_help_or_by_safety():
    assert answers_of(apply("pku_saferlhf", ROWS["pku_saferlhf"])) == ["good", "bad"]
    assert answers_of(apply("pku_saferlhf_safer", ROWS["pku_saferlhf"])) == ["bad", "good"]
    assert reason_of("pku_saferlhf", {**ROWS["pku_saferlhf"], "better_response_id": 2}) == "wrong_type"


def test_arena_reads_turns_from_json():
    group = apply("arena", ARENA)
    assert group.conversations == (turns("q", "s", "and?", "good"), turns("q", "r", "and?", "bad"))
    assert group.comparisons == PAIR
    assert apply("arena", {**ARENA, **WON, "winner_tie": 1}).comparisons == TIE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (WON, "bad_label"),
        ({"winner_tie": 1}, "bad_label"),
        ({"prompt": '["q"]'}, "wrong_type"),
        ({"response_a": "not JSON"}, "bad_json"),
        ({"response_a": '["r", null]'}, "wrong_type"),
        ({"response_a": '["r", "\\ud83d"]'}, "bad_json"),
        ({"response_a": '"r"'}, "wrong_type"),
    ],
)
def test_arena_rows_that_do_not_fit(change, reason):
    assert reason_of("arena", {**ARENA, **change}) == reason


def test_sharegpt_system_text_tools_and_replies_as_text():
    row = {
        **ROWS["sharegpt_ranking"],
        "system": "be kind",
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
            {"from": "observation", "value": "sunny"},
        ],
        "chosen": "good",
    }
    group = apply("sharegpt_ranking", row)
    roles = [message["role"] for message in group.conversations[0]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert answers_of(group) == ["good", "bad"]
    row["conversations"][1]["from"] = "function_call"
    assert reason_of("sharegpt_ranking", row) == "unsupported_tool_call"


def test_openai_tools_go_to_the_chat_template():
    row = ROWS["openai_dpo"]
    with_tools = {**row, "input": {**row["input"], "tools": [{"type": "function"}]}}
    assert apply("openai_dpo", with_tools).template_arguments == {"tools": [{"type": "function"}]}


def test_real_instruction_rows_agree_with_the_example_of_a_users_own_file(real_data):
    own = find_map_function(f"{REPOSITORY / 'examples' / 'instruction_preference.py'}:to_pair")
    rows = read_real(real_data, "instruction_preference.jsonl.gz")
    assert len(rows) == 900
    for row in rows:
        assert apply("instruction", row) == apply_function(own, row, "here")


def test_reward_bench_2_compares_each_chosen_with_each_rejected():
    group = apply("reward_bench_2", {**ROWS["reward_bench_2"], "chosen": ["a", "b"], "rejected": ["c", "d", "e"]})
    assert answers_of(group) == ["a", "b", "c", "d", "e"]
    assert group.comparisons == tuple(Comparison(i, j) for i in (0, 1) for j in (2, 3, 4))
    assert reason_of("reward_bench_2", {**ROWS["reward_bench_2"], "chosen": "good"}) == "wrong_type"


def test_xtuner_reads_only_lists():
    assert reason_of("xtuner", {**ROWS["xtuner"], "chosen": "good"}) == "wrong_type"


def test_a_finegrained_row():
    group = apply("finegrained_qa", ROWS["finegrained_qa"])
    assert answers_of(group) == ["first", "second", "third", "fourth"]
    assert prompt_of(group) == turns("title\none. two.\n\nother\nthree.\n\nq")
    assert is_ordered(group.comparisons, 4)


def test_real_finegrained_rows_are_ordered_tied_cyclic_or_all_equal(real_data):
    rows = read_real(real_data, "finegrained_qa_4way.jsonl.gz")
    groups = [apply("finegrained_qa", row) for row in rows]
    assert len(groups) == 375
    assert all(len(group.conversations) == 4 and len(group.comparisons) == 6 for group in groups)
    tied = [group for group in groups if any(comparison.is_tie for comparison in group.comparisons)]
    assert len(tied) == 140
    assert sum(all(comparison.is_tie for comparison in group.comparisons) for group in groups) == 9
    assert sum(is_ordered(group.comparisons, 4) for group in groups) == 235
    # the 16 that fit no order, ties allowed: some answer beats one that it ties with elsewhere, or a cycle
    assert sum(not _fits_some_ranks(group) for group in groups) == 16


def _fits_some_ranks(group: PreferenceGroup) -> bool:
    known = {frozenset(c[:2]): c[0] if c.label == 1 else None for c in group.comparisons}
    return any(
        known == {frozenset(c[:2]): c[0] if c.label == 1 else None for c in comparisons.from_ranks(ranks)}
        for ranks in itertools.product(range(4), repeat=4)
    )


# --- auto ---


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_schema_is_recognised_from_its_row(name):
    row = ROWS[name][0] if name == "helpsteer2" else ROWS[name]
    assert recognise(row) == {"xtuner": "canonical"}.get(name, name)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({**WHOLE, "score_chosen": 7.0, "score_rejected": 5.0}, "ultrafeedback_binarized"),
        ({"prompt": "q", **WHOLE, "chosen-rating": 5.0, "rejected-rating": 4.0}, "orpo_dpo_mix_40k"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2]}, "canonical"),
        ({"prompt": "q", "chosen": REPLY[0], "rejected": REPLY[1]}, "canonical"),
        ({"prompt": None, **WHOLE}, "skywork"),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"}, "sharegpt_ranking"),
    ],
)
def test_relatives_of_a_schema_are_recognised_too(row, name):
    assert recognise(row) == name


def test_the_real_files_are_recognised(real_data):
    names = {file.name: recognise(read_real(real_data, file.name)[0]) for file in real_data.glob("*.jsonl.gz")}
    assert names == {
        "finegrained_qa_4way.jsonl.gz": "finegrained_qa",
        "gsm8k_solution_pairs.jsonl.gz": "canonical",
        "hh_rlhf_harmless.jsonl.gz": "hh_rlhf",
        "instruction_preference.jsonl.gz": "instruction",
        "orca_dpo_pairs_sample.jsonl.gz": "intel_orca_dpo",
        "orpo_dpo_mix_sample.jsonl.gz": "orpo_dpo_mix_40k",
    }


def test_an_unknown_schema_lists_what_was_seen_and_the_candidates():
    with pytest.raises(ConfigError) as error:
        recognise({"question": "q", "chosen": "a", "rejected": "b"})
    assert error.value.message == "no map function fits the columns question, chosen, rejected"
    assert "intel_orca_dpo reads system, question, chosen, rejected" in error.value.hint
    both = {**ROWS["instruction"], **ROWS["sharegpt_ranking"], "chosen": "a", "rejected": "b"}
    with pytest.raises(ConfigError) as error:
        recognise(both)
    assert error.value.message.endswith("conversations: sharegpt_ranking, instruction")


def test_auto_says_what_it_chose_and_prepares_as_if_named(cli, tmp_path):
    rows = [{"instruction": f"q {n}", "input": "", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(20)]
    write_lines(tmp_path / "rows.jsonl", rows)
    shards = []
    for name in ("auto", "instruction"):
        result = cli("prepare", "rows.jsonl", "--map-fn", name, "--preset", "tiny", "-o", name)
        assert result.code == 0, result.stderr
        manifest = read_manifest(tmp_path / name)
        assert manifest["dataset_map_fn"] == "instruction"
        shards.append(manifest["shards"])
        said = "map function instruction, recognised by the columns instruction, input, chosen, rejected of "
        assert (f"{said}rows.jsonl:1\n" in result.stderr) == (name == "auto")
    assert shards[0] == shards[1]
    dry = cli("prepare", "rows.jsonl", "--map-fn", "auto", "--preset", "tiny", "-n")
    assert 'dataset_map_fn = "instruction" # recognised by the columns' in dry.stdout
    assert "# output = data/instruction-tiny" in dry.stdout


def test_auto_on_an_unknown_schema_or_an_empty_file(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"text": "a"}])
    (tmp_path / "empty.jsonl").write_text("{not json\n")
    result = cli("prepare", "rows.jsonl", "--map-fn", "auto", "--preset", "tiny")
    assert result.code == 2
    assert "error: no map function fits the columns text\nhint: name one" in result.stderr
    result = cli("prepare", "empty.jsonl", "--map-fn", "auto", "--preset", "tiny")
    assert result.code == 1
    assert "error: no readable row in" in result.stderr


# --- K-way groups through prepare ---


def test_groups_of_four_are_prepared_and_their_eval_text_is_canonical(cli, tmp_path, real_data):
    rows = read_real(real_data, "finegrained_qa_4way.jsonl.gz")[:60]
    for row in rows:
        row["passages"] = [passage[:2] for passage in row["passages"][:1]]
    write_lines(tmp_path / "rows.jsonl", rows)
    settings = ("-s", "data.eval_fraction=0.3", "-s", "data.max_length=2048", "-s", "data.max_packed_length=8192")
    settings += ("-s", wide_tiny(tmp_path / "wide", 2048))
    result = cli("prepare", "rows.jsonl", "--map-fn", "finegrained_qa", "--preset", "tiny", "-o", "out", *settings)
    assert result.code == 0, result.stderr
    manifest = read_manifest(tmp_path / "out")
    expected = {row_id: apply("finegrained_qa", row) for row_id, row in enumerate(rows)}
    assert manifest["rows"]["kept"] == 60
    for split in SPLITS:
        packed = PackedSplit(tmp_path / "out", split)
        for group in (group for row in range(len(packed)) for group in packed.groups(row)):
            assert group.comparisons == expected[group.row_id].comparisons
            assert group.ordered == is_ordered(group.comparisons, 4)
            assert len(group.responses) == 4
    lines = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert len(lines) > 5
    again = [apply("canonical", line) for line in lines]
    assert all(group in expected.values() for group in again)


# --- default data sets, plugins and the list ---


@pytest.mark.parametrize(
    ("name", "source", "split"),
    [
        ("skywork", "Skywork/Skywork-Reward-Preference-80K-v0.2", "train"),
        ("reward_bench_2", "allenai/reward-bench-2", "test"),
        ("ultrafeedback_binarized", "HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    ],
)
def test_a_map_function_knows_its_data_set_and_split(cli, name, source, split):
    plan = json.loads(cli("prepare", "--map-fn", name, "--preset", "tiny", "-n", "--json").stdout)
    own = source if split == "train" else {"path": source, "split": split}  # train is what data.split says anyway
    assert plan["plan"]["sources"] == [own]
    chosen = cli("prepare", "--map-fn", name, "--preset", "tiny", "-n", "--json", "-s", "data.split=mine").stdout
    assert json.loads(chosen)["config"]["data"]["split"] == "mine"
    assert json.loads(chosen)["plan"]["sources"] == [source]


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """`plugins(theirs={"name": "module:function"})` installs a package `theirs` with that entry point."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "their_rows.py").write_text(
        "from rmcli.rows.map_fns.fields import MapFunction\n"
        "def shout(row):\n    return {'prompt': row['q'], 'chosen': row['yes'], 'rejected': row['no']}\n"
        "def first_two(rows):\n    return {'prompt': 'q', 'responses': [r['a'] for r in rows], 'ranks': [2, 1]}\n"
        "grouped = MapFunction(first_two, ('key', 'a'), None, rows_key=lambda row: row['key'])\n"
        "number = 7\n"
    )
    (site / "their_broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(str(site))

    def install(**distributions: dict[str, str]) -> None:
        for name, points in distributions.items():
            folder = site / f"{name}-1.5.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            lines = "".join(f"{point} = {value}\n" for point, value in points.items())
            (folder / "entry_points.txt").write_text(f"[rmcli.map_fns]\n{lines}")

    yield install
    for module in ("their_rows", "their_broken"):
        sys.modules.pop(module, None)


def test_a_plugin_is_found_by_its_name(plugins):
    plugins(theirs={"shout": "their_rows:shout", "grouped": "their_rows:grouped"})
    group = apply_function(find_map_function("shout"), {"q": "q", "yes": "good", "no": "bad"}, "here")
    assert group.conversations == (turns("q", "good"), turns("q", "bad"))
    grouped = find_map_function("grouped")
    assert grouped.columns == ("key", "a")
    assert answers_of(apply_function(grouped, [{"a": "bad"}, {"a": "good"}], "here")) == ["good", "bad"]


def test_a_plugin_prepares_data(cli, tmp_path, plugins):
    plugins(theirs={"shout": "their_rows:shout"})
    write_lines(tmp_path / "rows.jsonl", [{"q": f"q {n}", "yes": "a", "no": "b"} for n in range(10)])
    result = cli("prepare", "rows.jsonl", "--map-fn", "shout", "--preset", "tiny", "-o", "out")
    assert result.code == 0, result.stderr
    assert read_manifest(tmp_path / "out")["rows"]["kept"] == 10


def test_a_plugin_may_not_take_a_built_in_name(plugins, capsys):
    plugins(theirs={"hh_rlhf": "their_rows:shout"})
    assert find_map_function("hh_rlhf") is NAMED["hh_rlhf"]
    assert capsys.readouterr().err == (
        "note: theirs 1.5 offers a map function hh_rlhf: not used, rmcli has its own\n"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "broken",
            "map function 'broken' of theirs 1.5: their_broken:f does not load: "
            "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        ),
        (
            "gone",
            "map function 'gone' of theirs 1.5: their_rows:gone does not load: "
            "AttributeError: module 'their_rows' has no attribute 'gone'",
        ),
        ("number", "map function 'number': their_rows:number of theirs 1.5 is a int"),
        ("twice", "map function 'twice' is offered by others 1.5 and theirs 1.5"),
    ],
)
def test_a_broken_plugin_is_one_line_and_only_when_it_is_used(cli, plugins, name, message):
    plugins(
        theirs={
            "broken": "their_broken:f",
            "gone": "their_rows:gone",
            "number": "their_rows:number",
            "twice": "their_rows:shout",
        },
        others={"twice": "their_rows:grouped"},
    )
    assert find_map_function("canonical") is NAMED["canonical"]
    assert cli("map-fns").code == 0
    result = cli("prepare", "--map-fn", name, "--preset", "tiny")
    assert result.code == 2
    assert result.stderr.splitlines()[0] == f"error: {message}"
    assert len(result.stderr.splitlines()) == 2


def test_the_list_has_names_columns_data_sets_and_plugins(cli, plugins):
    plugins(theirs={"broken": "their_broken:f", "hh_rlhf": "their_rows:shout"})
    listed = json.loads(cli("map-fns", "--json").stdout)
    assert [entry["name"] for entry in listed] == [*NAMED, "broken", "hh_rlhf"]
    assert listed[3] == {
        "name": "hh_rlhf",
        "columns": ["chosen", "rejected"],
        "default_source": "Anthropic/hh-rlhf",
        "description": "transcripts of Human: and Assistant:",
        "from": "rmcli",
    }
    assert [(entry["description"], entry["from"]) for entry in listed[-2:]] == [
        ("their_broken:f", "theirs 1.5"),
        ("not used, rmcli has its own", "theirs 1.5"),
    ]
    result = cli("map-fns", "--wide")
    for name, known in NAMED.items():
        (line,) = [line for line in result.stdout.splitlines() if line.split()[:1] == [name] and "theirs" not in line]
        assert known.columns[0] in line
        assert (known.default_source or "") in line
    assert result.stderr == "next: rmcli prepare SOURCE --map-fn NAME\n"
    assert cli("map-fns", "-q").stderr == ""


def test_auto_is_no_map_function_itself():
    with pytest.raises(ConfigError, match="auto needs rows to look at"):
        find_map_function("auto")


def test_a_name_that_is_nearly_a_plugins_is_guessed(plugins):
    plugins(theirs={"shout": "their_rows:shout"})
    with pytest.raises(ConfigError) as error:
        find_map_function("shoot")
    assert error.value.hint == "did you mean shout?"
