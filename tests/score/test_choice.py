"""From scores to data: prompts with all their answers, the best of N, pairs for `prepare` and for DPO."""

import json
from pathlib import Path

import pytest

from rmcli.score import units
from rmcli.scorer.scorer import Score
from support.places import REPOSITORY, write_lines

MODEL = REPOSITORY / "tests" / "written_before" / "model"


@pytest.fixture
def told(monkeypatch):
    """The score of an answer is the number that its text is."""

    def encode_apart(encoder, groups):
        return [[talk[-1]["content"] for talk in group.conversations] for group in groups]

    def score_sides(self, sides, advance):
        advance(len(sides))
        return [[_score(text) for text in of_group] for of_group in sides]

    monkeypatch.setattr(units, "encode_apart", encode_apart)
    monkeypatch.setattr(units, "written_alike", lambda groups, sides: None)
    monkeypatch.setattr(units.Scorer, "score_sides", score_sides)


def _score(text: str) -> Score:
    return Score(None, error="overlong") if text == "long" else Score(float(text))


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def reply(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def run(cli, *arguments: object, rows: list[dict], code: int = 0):
    result = cli("score", MODEL, "--json", *arguments, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert result.code == code, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    summary = next(json.loads(line) for line in result.stderr.splitlines() if line.startswith("{"))
    return lines, summary, result.stderr


def test_a_line_per_prompt_has_its_completions_their_scores_and_which_is_best(cli, told):
    rows = [{"id": 1, "prompt": "q", "responses": ["1", "3", "2"]}, {"id": 2, "prompt": "q", "responses": ["5"]}]
    lines, summary, _ = run(cli, "--by-prompt", rows=rows)
    assert lines == [
        {"scores": [1, 3, 2], "best": 1, "prompt": user("q"), "completions": [*map(reply, "132")], "id": 1},
        {"scores": [5], "best": 0, "prompt": user("q"), "completions": [reply("5")], "id": 2},
    ]
    assert (summary["lines"], summary["prompts"], summary["answers"], summary["written"]) == (2, 2, 4, 2)


def test_rows_of_one_answer_that_ask_the_same_are_one_prompt(cli, told):
    """As open-instruct's generation writes them: a whole conversation a row."""
    rows = [
        {
            "messages": [*user(question), *reply(answer)],
            "model_completion": answer,
            "reference_completion": "r",
            "model": "m",
        }
        for question, answers in (("a", "21"), ("b", "345"), ("a", "6"))
        for answer in answers
    ]
    rows[3:3] = [{"prompt": "bad"}]
    lines, summary, _ = run(cli, "--by-prompt", rows=rows, code=1)
    assert [(line.get("scores"), line.get("best")) for line in lines] == [
        ([2, 1], 0),
        ([3, 4, 5], 2),
        (None, None),
        ([6], 0),
    ]
    assert lines[2] == {"error": "missing_column chosen"}
    assert lines[1]["model_completion"] == ["3", "4", "5"]  # where rows differ, one for each answer
    assert lines[1]["model"] == "m"
    assert (summary["lines"], summary["errors"]) == (7, {"missing_column chosen": 1})
    best, _, said = run(cli, "--best-of", 2, rows=rows, code=1)
    assert [(line["score"], line["margin"], line["model_completion"]) for line in best] == [
        (2, 1, "2"),
        (4, 1, "4"),
        (5, None, "5"),
        (6, None, "6"),
    ]
    assert "2 of 4 prompts: fewer than 2 answers" not in said  # with --json the summary says it
    assert "hint: the first is missing_column chosen at -:4" in said


def test_an_answer_without_a_score_costs_no_other(cli, told):
    rows = [{"prompt": "q", "responses": ["1", "long", "2"]}, {"prompt": "q", "responses": ["long"]}]
    lines, summary, said = run(cli, "--by-prompt", rows=rows, code=1)
    assert [line["scores"] for line in lines] == [[1, None, 2], [None]]
    assert [line["best"] for line in lines] == [2, None]
    assert [line["errors"] for line in lines] == [[None, "overlong", None], ["overlong"]]
    assert summary["errors"] == {"overlong": 2}
    assert "error: 2 rows and answers have no score: 2 overlong" in said
    lines, _, _ = run(cli, "--best-of", 3, rows=rows, code=1)
    assert [line["best"] for line in lines] == [2]


def test_the_best_of_n_has_its_margin_and_what_is_below_a_score_is_left_out(cli, told):
    rows = [
        {"id": n, "prompt": "q", "responses": texts} for n, texts in enumerate((["1", "4", "9"], ["2", "3"], "7"))
    ]
    rows[2]["responses"] = ["7"]
    lines, summary, _ = run(cli, "--best-of", 2, "--min-score", 3.5, rows=rows)
    assert lines == [
        {"score": 4, "margin": 3, "best": 1, "prompt": user("q"), "completion": reply("4"), "id": 0},
        {"score": 7, "margin": None, "best": 0, "prompt": user("q"), "completion": reply("7"), "id": 2},
    ]
    assert (summary["written"], summary["left_out"]) == (2, {"below_min_score": 1})
    result = cli("score", MODEL, "--best-of", 2, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert "note: 1 of 3 prompts: more than 2 answers, of which the first 2 count" in result.stderr
    assert "note: 1 of 3 prompts: fewer than 2 answers" in result.stderr
    assert "3 lines scored, 3 prompts, 5 answers" in result.stderr


def test_rows_below_a_score_are_left_out_and_errors_stay(cli):
    rows = [{"prompt": "Sort: 2 1", "response": text} for text in ("1 2", "2 1", "no")] + [{"prompt": "bad"}]
    lines, _, _ = run(cli, rows=rows, code=1)
    bound = sorted(line["score"] for line in lines[:3])[1]
    kept, summary, _ = run(cli, "--min-score", bound, rows=rows, code=1)
    assert kept == [line for line in lines if line.get("score", bound) >= bound]
    assert len(kept) == 3
    assert summary["left_out"] == {"below_min_score": 1}


def test_pairs_are_mined_by_margin(cli, told):
    rows = [
        {"id": 1, "prompt": "q", "responses": ["1", "4", "2.5"]},
        {"id": 2, "prompt": "q", "responses": ["3", "3"]},
    ]
    rows += [{"id": 3, "prompt": "q", "responses": ["3"]}, {"id": 4, "prompt": "q", "responses": ["9", "8.5"]}]
    lines, summary, _ = run(cli, "--mine-pairs", "best_worst", "--min-margin", 1, rows=rows)
    assert lines == [
        {
            "chosen_score": 4,
            "rejected_score": 1,
            "margin": 3,
            "prompt": user("q"),
            "chosen": reply("4"),
            "rejected": reply("1"),
            "id": 1,
        }
    ]
    assert summary["left_out"] == {"below_min_margin": 2, "fewer_than_two_scores": 1}
    for which, expected in (("adjacent", [(4, 2.5), (2.5, 1)]), ("all", [(4, 2.5), (4, 1), (2.5, 1)])):
        lines, _, _ = run(cli, "--mine-pairs", which, rows=rows[:2])
        assert [(line["chosen_score"], line["rejected_score"]) for line in lines] == expected
    lines, _, _ = run(cli, "--mine-pairs", "best_worst", "--min-score", 5, rows=rows)
    assert [line["id"] for line in lines] == [4]


def test_mined_pairs_are_prepared_and_scored_as_they_were(cli, tmp_path):
    """With turns, a system message and several own columns; the same file is TRL's prompt, chosen and rejected."""
    asked = [{"role": "system", "content": "Sort."}, *user("2 1"), *reply("1 2"), *user("3 1")]
    rows = [{"id": n, "prompt": asked, "responses": [f"1 {n}", f"{n} 1", "no"]} for n in range(2, 8)]
    rows += [{"id": "x", "prompt": "Sort: 2 1", "outputs": ["1 2", "2 1"], "system": "Sort."}]
    write_lines(tmp_path / "in.jsonl", rows)
    mined = cli("score", MODEL, "in.jsonl", "-o", "pairs.jsonl", "--mine-pairs", "best_worst")
    assert mined.code == 0, mined.stderr
    lines = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert all(isinstance(line[name], list) for line in lines for name in ("prompt", "chosen", "rejected"))
    assert [message["role"] for message in lines[-1]["prompt"]] == ["system", "user"]
    for map_fn in ("canonical", "auto"):
        prepared = cli("prepare", "pairs.jsonl", "--map-fn", map_fn, "-p", "tiny", "-o", map_fn, "--json")
        assert prepared.code == 0, prepared.stderr
        rows_in = json.loads(Path(map_fn, "manifest.json").read_text())["rows"]
        assert (rows_in["in"], rows_in["kept"]) == (7, 7), rows_in
    again = cli("score", MODEL, "pairs.jsonl", "-q")
    for line, expected in zip(map(json.loads, again.stdout.splitlines()), lines, strict=True):
        for name in ("chosen_score", "rejected_score", "margin"):
            assert line[name] == pytest.approx(expected[name], abs=2e-6)


def test_tools_come_back_beside_the_messages(cli, told):
    row = {"prompt": "q", "responses": ["1", "2"], "tools": [{"name": "add"}], "chat_template_kwargs": {"x": 1}}
    for option in (("--by-prompt",), ("--best-of", 2), ("--mine-pairs", "all")):
        (line,), _, _ = run(cli, *option, rows=[row])
        assert (line["tools"], line["chat_template_kwargs"]) == (row["tools"], row["chat_template_kwargs"])


@pytest.mark.parametrize("length", [10, 90000])  # a long prompt goes beyond the beginning that is looked at
def test_what_score_wrote_it_overwrites_and_scores_again(cli, tmp_path, told, length):
    row = {"prompt": "x" * length, "responses": ["1", "2"]}
    for option in (("--by-prompt",), ("--best-of", 2), ("--mine-pairs", "all")):
        (line,), _, _ = run(cli, *option, rows=[row])
        write_lines(tmp_path / "out.jsonl", [line])
        write_lines(tmp_path / "in.jsonl", [row])
        assert cli("score", MODEL, "in.jsonl", "-o", "out.jsonl", *option).code == 2
        assert cli("score", MODEL, "in.jsonl", "-o", "out.jsonl", "--overwrite", *option).code == 0
        assert json.loads(Path("out.jsonl").read_text()) == line
        if length < 100:
            assert cli("score", MODEL, "out.jsonl").code == 0
    (tmp_path / "mine.jsonl").write_text(json.dumps({"score": 5, "prompt": "x" * length, "response": "x"}) + "\n")
    refused = cli("score", MODEL, "in.jsonl", "-o", "mine.jsonl", "--overwrite")
    assert "holds no scores" in refused.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--by-prompt", "--best-of", 2), "--by-prompt and --best-of are two kinds of lines"),
        (("--mine-pairs", "worst"), "--mine-pairs worst: no such pairs"),
        (("--min-margin", 1), "--min-margin is of pairs"),
        (("--mine-pairs", "all", "--min-margin", "-1"), "--min-margin -1.0"),
        (("--min-score", "nan"), "--min-score nan"),
        (("--best-of", 0), "--best-of 0"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(cli, options, error):
    result = cli("score", MODEL, *options, stdin="")
    assert (result.code, result.stderr.splitlines()[0]) == (2, f"error: {error}")
