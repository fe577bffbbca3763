"""`rmcli score` and `rmcli presets`."""

import json
import shutil
from pathlib import Path

import pytest

from rmcli.config.presets import presets_folder
from rmcli.score import run as score
from support.places import write_lines

PAIR = {"prompt": "Sort: 3 1 2 0", "chosen": "0 1 2 3", "rejected": "0 2 1 3"}


def conversation(prompt: str, reply: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_conversations_and_pairs_in_order(cli, tiny_run):
    rows = [conversation(f"Sort: 2 {n} 1", f"1 2 {n}") for n in range(3, 9)]
    rows.insert(2, PAIR)
    result = cli("score", tiny_run.model, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert result.code == 0, result.stderr
    lines = lines_of(result.stdout)
    assert [sorted(line) for line in lines] == [["score"]] * 2 + [["chosen_score", "margin", "rejected_score"]] + [
        ["score"]
    ] * 4
    alone = [
        lines_of(cli("score", tiny_run.model, stdin=json.dumps(row)).stdout)[0]["score"]
        for row in (rows[0], rows[6], conversation(PAIR["prompt"], PAIR["chosen"]))
    ]
    together = [lines[0]["score"], lines[6]["score"], lines[2]["chosen_score"]]
    assert together == pytest.approx(alone, abs=1e-5)
    assert lines[2]["margin"] == pytest.approx(lines[2]["chosen_score"] - lines[2]["rejected_score"], abs=1e-5)
    assert "7 lines scored" in result.stderr
    assert f"1 pairs: accuracy {int(lines[2]['margin'] > 0):.3f}" in result.stderr


def test_k_responses_are_scored_in_the_rows_order_and_count_by_their_comparisons(cli, tiny_run):
    answers = ["1 2 3", "3 1 2", "2 1 3"]
    alone = [
        lines_of(cli("score", tiny_run.model, stdin=json.dumps({**PAIR, "rejected": answer})).stdout)[0]
        for answer in answers
    ]
    expected = [pytest.approx(line["rejected_score"], abs=2e-5) for line in alone]
    row = {"prompt": PAIR["prompt"], "responses": answers, "comparisons": [[2, 0], [1, 0, 0.0], [1, 2, 0.5]]}
    tie = {**PAIR, "label": 0.5}
    turned = {**PAIR, "label": 0}
    result = cli("score", tiny_run.model, "--json", stdin="".join(json.dumps(r) + "\n" for r in (row, tie, turned)))
    lines = lines_of(result.stdout)
    assert lines[0] == {"scores": expected}
    assert lines[1] == lines[2]
    scores = lines[0]["scores"]
    summary = json.loads(result.stderr.splitlines()[-1])
    assert summary["pairs"] == 3  # two of the three responses' comparisons, none of the tie, one turned round
    right = [scores[2] > scores[0], scores[0] > scores[1], lines[2]["rejected_score"] > lines[2]["chosen_score"]]
    assert summary["accuracy"] == pytest.approx(sum(right) / 3, abs=1e-9)


@pytest.mark.parametrize("first", [60, pytest.param(None, marks=pytest.mark.slow)])
def test_windows_and_packs_change_nothing(cli, tiny_run, monkeypatch, first):
    text = "".join((tiny_run.data / "eval.jsonl").read_text().splitlines(keepends=True)[:first])
    whole = lines_of(cli("score", tiny_run.model, "-q", stdin=text).stdout)
    monkeypatch.setattr(score, "WINDOW", 7)
    small = cli(
        "score", tiny_run.model, "-q", "-s", "data.max_length=64", "-s", "data.max_packed_length=64", stdin=text
    )
    padded = cli("score", tiny_run.model, "-q", "-s", "model.use_varlen_attn=false", stdin=text)
    for other in map(lines_of, (small.stdout, padded.stdout)):
        assert len(other) == len(whole) >= (first or 200)
        for ours, theirs in zip(whole, other, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_files_in_and_out(cli, tiny_run, tmp_path):
    turned = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    write_lines(tmp_path / "in.jsonl", [PAIR, turned])  # one of them is right, whatever the model has learned
    result = cli("score", tiny_run.model, "in.jsonl", "-o", "out.jsonl", "--json")
    assert result.code == 0, result.stderr
    one, other = lines_of((tmp_path / "out.jsonl").read_text())
    assert one["margin"] == -other["margin"]
    summary = json.loads(result.stdout)
    assert (summary["lines"], summary["pairs"], summary["accuracy"], summary["errors"]) == (2, 2, 0.5, {})
    piped = cli("score", tiny_run.model, "in.jsonl", "--json", "-q")
    assert lines_of(piped.stdout) == lines_of((tmp_path / "out.jsonl").read_text())
    assert json.loads(piped.stderr)["pairs"] == 2


def test_a_bad_line_gets_an_error_in_its_place_and_exit_code_1(cli, tiny_run):
    rows = [
        json.dumps(PAIR),
        "{broken",
        json.dumps({"messages": []}),
        json.dumps({"prompt": "q"}),
        "",
        json.dumps(PAIR),
    ]
    result = cli("score", tiny_run.model, stdin="\n".join(rows))
    assert result.code == 1
    lines = lines_of(result.stdout)
    errors = [None, "bad_json", "empty_conversation", "missing_column chosen", "empty_line", None]
    assert [line.get("error") for line in lines] == errors
    assert lines[0] == lines[5]
    assert "error: 4 of 6 lines have no score" in result.stderr


def test_what_training_would_reject_is_still_scored(cli, tiny_run):
    same = {**PAIR, "rejected": PAIR["chosen"]}
    long_question = {**PAIR, "prompt": "0 1 2 3 " * 40, "rejected": PAIR["chosen"]}
    result = cli("score", tiny_run.model, stdin=json.dumps(same) + "\n" + json.dumps(long_question))
    assert result.code == 0, result.stderr
    first, second = lines_of(result.stdout)
    assert first["margin"] == 0.0
    assert second["truncated"] is True
    assert "truncated" not in first
    assert "2 lines scored, 1 truncated" in result.stderr


def test_a_reply_that_does_not_fit_has_no_score_whatever_was_asked(cli, tiny_run):
    """Cut down to its own beginning, it would have the same score after any question."""
    questions = ["Count to a hundred.", "Name three green fruits."]
    lines = [json.dumps({**PAIR, "prompt": question, "chosen": "0 1 2 3 " * 40}) for question in questions]
    result = cli("score", tiny_run.model, stdin="\n".join(lines))
    assert lines_of(result.stdout) == [{"error": "overlong"}] * 2
    assert result.code == 1


def test_dry_run_names_the_models_own_configuration(cli, tiny_run):
    result = cli(
        "score", tiny_run.model, "in.jsonl", "-n", "-s", "data.max_length=100", "-s", "data.max_packed_length=200"
    )
    assert f'pretrained_model_name_or_path = "{tiny_run.model}" # MODEL' in result.stdout
    assert "max_length = 100 # --set data.max_length" in result.stdout
    assert "random_weights = false # MODEL" in result.stdout


def test_models_that_cannot_score(cli, tiny_run, tmp_path):
    assert "no such folder" in cli("score", "gone", stdin="").stderr
    result = cli("score", tiny_run.run, stdin="")
    assert "it is a run folder" in result.stderr
    assert f"hint: try {tiny_run.model}" in result.stderr
    result = cli("score", presets_folder() / "tiny", stdin="")
    assert "not a ...ForSequenceClassification" in result.stderr
    assert cli("score", tiny_run.model, "gone.jsonl").code == 1


def test_damaged_models_are_one_line(cli, tiny_run, tmp_path):
    for name, content in (("config.json", "{"), ("model.safetensors", "cut")):
        folder = tmp_path / name
        shutil.copytree(tiny_run.model, folder)
        (folder / name).write_text(content)
        result = cli("score", folder, stdin=json.dumps(PAIR))
        assert result.code in (1, 2)
        assert result.stderr.startswith("error: "), result.stderr
        assert len(result.stderr.splitlines()) <= 2


def test_input_that_cannot_be_read_is_one_line(cli, tiny_run, tmp_path):
    (tmp_path / "no.jsonl.gz").write_text("no gzip")
    for target in ("-", "out.jsonl"):
        result = cli("score", tiny_run.model, "no.jsonl.gz", "-o", target)
        assert result.code == 1
        assert "error: no.jsonl.gz cannot be read" in result.stderr
    assert "no.jsonl.gz cannot be read" in cli("score", tiny_run.model, tmp_path).stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_device_is_written_and_not_replaced(cli, tiny_run, tmp_path):
    target = tmp_path / "link.jsonl"
    target.symlink_to("real.jsonl")
    assert cli("score", tiny_run.model, "-o", target, stdin=json.dumps(PAIR)).code == 0
    assert target.is_symlink()
    assert "chosen_score" in (tmp_path / "real.jsonl").read_text()
    assert cli("score", tiny_run.model, "-o", "/dev/null", stdin=json.dumps(PAIR)).code == 0
    assert not Path("/dev/null").is_file()


def test_an_unwritable_output_is_one_line(cli, tiny_run):
    result = cli("score", tiny_run.model, "-o", "/sys/rmcli/out.jsonl", stdin=json.dumps(PAIR))
    assert result.code == 1
    assert "error: cannot write /sys/rmcli/out.jsonl" in result.stderr


def test_a_folder_without_rmcli_toml_scores_by_its_config(cli, tiny_run, tmp_path):
    shutil.copytree(tiny_run.model, tmp_path / "model")
    (tmp_path / "model" / "rmcli.toml").unlink()
    there, here = (lines_of(cli("score", m, stdin=json.dumps(PAIR)).stdout) for m in (tiny_run.model, "model"))
    assert there == here
