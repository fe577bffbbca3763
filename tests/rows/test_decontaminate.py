"""`rmcli prepare --decontaminate`: planted overlaps are left out and counted, near misses are kept."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from rmcli.packs.manifest import read_manifest
from rmcli.records import Message, RawRow
from rmcli.rows.decontaminate import EvaluationPrompts, prompts_of, read_prompts, words
from support.places import REPOSITORY, write_lines

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
TWELVE = THIRTEEN.removesuffix(" thirteen")


def evaluation(*rows: dict) -> EvaluationPrompts:
    return read_prompts({"eval.jsonl": [RawRow(0, "eval.jsonl", n, row, None) for n, row in enumerate(rows, 1)]})


def asks(text: str, *before: str) -> tuple[Message, ...]:
    """A prompt whose last user message is `text`."""
    roles = ("user", "assistant")
    turns = [Message(role=roles[n % 2], content=said) for n, said in enumerate(before)]
    return (*turns, Message(role="user", content=text))


def test_words_are_lower_case_without_punctuation():
    assert words("What's  the\n“Answer”, MR. Ｓｍｉｔｈ_42?!") == ["what", "s", "the", "answer", "mr", "smith", "42"]


@pytest.mark.parametrize(
    ("prompt", "overlaps"),
    [
        ("What is the capital of France?", True),
        ("  what IS the capital -- of france", True),
        ("What is the capital of Spain?", False),
        ("What is the capital of France today?", False),  # not the same text, and no 13 words in a row
        (f"Now then: {THIRTEEN.upper()}, and so on", True),
        (f"Now then: {TWELVE}, and so on", False),
        (THIRTEEN.replace("seven", "7"), False),
        ("zero " + THIRTEEN, True),
        ("???", False),
    ],
)
def test_the_same_text_or_thirteen_words_in_a_row(prompt, overlaps):
    held_out = evaluation(
        {"prompt": "What is the capital of France?"}, {"prompt": f"Count: {THIRTEEN} fourteen and stop."}
    )
    assert held_out.overlap(asks(prompt)) is overlaps


def test_only_what_the_user_says_is_compared():
    held_out = evaluation({"prompt": THIRTEEN}, {"prompt": "Go on"})
    system = Message(role="system", content=THIRTEEN)
    assert not held_out.overlap((system, *asks("Hello")))
    assert not held_out.overlap(asks("Hello", "Hi", THIRTEEN))
    assert held_out.overlap((system, *asks("Go on")))
    # a short question at the end of a long talk is another prompt
    assert not held_out.overlap(asks("Go on", "Tell me a story", "Once upon a time"))


def test_a_phrase_of_many_evaluation_prompts_is_a_template():
    template = f"Instruction: {THIRTEEN}. Task: "
    ten = evaluation(*({"prompt": template + f"number {n}"} for n in range(10)))
    eleven = evaluation(*({"prompt": template + f"number {n}"} for n in range(11)))
    assert ten.overlap(asks(template + "something else"))
    assert not eleven.overlap(asks(template + "something else"))
    assert eleven.overlap(asks(template + "number 3"))  # its whole text is there
    one = evaluation(*({"prompt": template + "number 1"} for _ in range(20)))
    assert one.overlap(asks(template + "something else"))  # twenty rows about one prompt are no template


def test_prompts_are_found_in_the_usual_schemas():
    def said(row: dict) -> list[list[str]]:
        return [[" ".join(message) for message in prompt] for prompt in prompts_of(row)]

    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "b"},
    ]
    assert said({"prompt": "A b"}) == [["a b"]]
    assert said({"prompt": chat, "chosen": [{"role": "assistant", "content": "x"}]}) == [["a"]]
    assert said({"messages": [*chat, {"role": "user", "content": "C"}]}) == [["a", "c"]]
    assert said({"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "b"}]}) == [["a"]]
    assert said({"chosen": chat, "rejected": chat}) == [["a"], ["a"]]
    assert said({"instruction": "A", "input": "b", "output": "c"}) == [["a b"]]
    assert said({"system": "s", "question": "Q", "chosen": "x", "rejected": "y"}) == [["q"]]
    transcript = "\n\nHuman: A\n\nAssistant: b\n\nHuman: C\n\nAssistant: d"
    assert said({"chosen": transcript, "rejected": transcript}) == [["a", "c"], ["a", "c"]]
    assert said({"prompt": "\n\nHuman: A\n\nAssistant: "}) == [["a"]]
    assert said({"text": "A", "prompt": None}) == []


ROWS = [{"prompt": f"question {n}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(40)]
PREPARE = ("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "out")


def test_overlapping_rows_are_left_out_and_counted(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "one.jsonl", [{"prompt": "Question 3!"}, {"prompt": "question 400"}])
    parquet.write_table(pa.Table.from_pylist([{"instruction": "QUESTION", "input": "7"}]), tmp_path / "two.parquet")
    result = cli(*PREPARE, "--decontaminate", "one.jsonl", "--decontaminate", "two.parquet")
    assert result.code == 0, result.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest["rows"]["kept"] == 38
    assert manifest["rows"]["reasons"] == {"in_evaluation_file": 2}
    assert manifest["config"]["data"]["decontaminate"] == [str(tmp_path / "one.jsonl"), str(tmp_path / "two.parquet")]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(one["reason"], one["line"]) for one in rejects] == [("in_evaluation_file", 4), ("in_evaluation_file", 8)]


def test_the_key_does_what_the_option_does(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "one.jsonl", [{"prompt": "question 3"}])
    assert cli(*PREPARE, "-s", "data.decontaminate=['one.jsonl']").code == 0
    assert read_manifest(tmp_path / "out")["rows"]["reasons"] == {"in_evaluation_file": 1}


def test_a_file_that_guards_nothing_is_refused_and_a_weak_one_is_named(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "none.jsonl", [{"text": "question 3"}])
    refused = cli(*PREPARE, "--decontaminate", "none.jsonl")
    assert refused.code == 1
    assert f"evaluation file {tmp_path / 'none.jsonl'}: no prompt in any of its 1 rows" in refused.stderr
    assert not (tmp_path / "out").exists()
    gone = cli(*PREPARE, "--decontaminate", "gone.jsonl")
    assert gone.code == 2
    assert "source gone.jsonl: no such file" in gone.stderr
    write_lines(tmp_path / "some.jsonl", [{"prompt": "question 3"}, {"text": "question 4"}, {"prompt": "?"}])
    some = cli(*PREPARE, "--decontaminate", "some.jsonl")
    assert "2 of 3 rows have no prompt to compare, the first in line 2" in some.stderr
    assert read_manifest(tmp_path / "out")["rows"]["reasons"] == {"in_evaluation_file": 1}


def test_training_on_another_preset_keeps_the_evaluation_file_out(cli, tmp_path):
    from rmcli.train.find_data import Elsewhere

    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "one.jsonl", [{"prompt": "question 3"}])
    cli(*PREPARE, "--decontaminate", "one.jsonl")
    found = Elsewhere.from_manifest(tmp_path / "out", read_manifest(tmp_path / "out"))
    assert found.data.decontaminate == [str(tmp_path / "one.jsonl")]


def test_real_rows_held_out_as_an_evaluation_file_are_left_out(cli, tmp_path, real_data):
    path = real_data / "instruction_preference.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 300)]
    write_lines(tmp_path / "rows.jsonl", rows)
    shouted = [{**row, "instruction": row["instruction"].upper() + " !"} for row in rows[::10]]
    write_lines(tmp_path / "held_out.jsonl", shouted)
    map_fn = f"{REPOSITORY / 'examples' / 'instruction_preference.py'}:to_pair"
    out = ("-p", "tiny", "-o", "out", "--decontaminate", "held_out.jsonl", "--no-audit")
    assert cli("prepare", "rows.jsonl", "--map-fn", map_fn, *out).code == 0
    rejects = [json.loads(line) for line in Path("out", "rejects.jsonl").read_text().splitlines()]
    found = {reject["line"] for reject in rejects if reject["reason"] == "in_evaluation_file"}
    assert found == {*range(1, 301, 10), 206}  # line 206 asks what line 41 asks


def test_an_evaluation_file_in_a_named_schema_is_read_by_its_map_function(cli, tmp_path):
    """Arena writes its turns as JSON within a text, line breaks and quotes escaped: no heuristic finds its words."""
    asked = 'Say "hello"\nin the way that a ship\u2019s captain of the last century would say it, please'
    write_lines(tmp_path / "rows.jsonl", [*ROWS, {"prompt": asked, "chosen": "Ahoy", "rejected": "Hi"}])
    arena = {
        "model_a": "a",
        "model_b": "b",
        "prompt": json.dumps([asked]),
        "response_a": json.dumps(["x"]),
        "response_b": json.dumps(["y"]),
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    }
    write_lines(tmp_path / "eval.jsonl", [arena])
    result = cli(*PREPARE, "--decontaminate", "eval.jsonl", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["rows"]["reasons"] == {"in_evaluation_file": 1}
