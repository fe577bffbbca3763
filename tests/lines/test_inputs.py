"""What `score` takes: files, folders, prepared folders, Hub sets; prompts and answers by their generators' names."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmcli.lines.read import read
from rmcli.packs.reader import PackedSplit
from rmcli.rows.map_fns.contract import Contract
from rmcli.score.choice import Choice
from rmcli.score.units import Prompts, Rows
from rmcli.scorer import windows
from support.places import REPOSITORY, write_lines

BEFORE = REPOSITORY / "tests" / "written_before"
MODEL = BEFORE / "model"
ANSWERS = ["1 2", "2 1", "no"]
ASKED = [{"role": "user", "content": "Sort: 2 1"}]


def scored(cli, *arguments: object, stdin: str | None = None) -> list[dict]:
    result = cli("score", MODEL, "-q", *arguments, stdin=stdin)
    assert result.code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def of_rows(cli, *rows: dict) -> list[dict]:
    return scored(cli, stdin="".join(json.dumps(row) + "\n" for row in rows))


def test_prompts_and_answers_are_read_by_the_names_that_generators_write(cli):
    expected = of_rows(cli, {"prompt": "Sort: 2 1", "responses": ANSWERS})[0]
    said = [{"role": "assistant", "content": answer} for answer in ANSWERS]
    rows = [
        {asks: value, name: ANSWERS}
        for asks, value in (("prompt", "Sort: 2 1"), ("prompt", ASKED), ("messages", ASKED))
        for name in ("responses", "outputs", "completions", "candidates")
    ]
    rows += [  # vLLM's outputs, OpenAI's choices, messages, lists of them
        {"prompt": "Sort: 2 1", "outputs": [{"index": n, "text": text} for n, text in enumerate(ANSWERS)]},
        {"messages": ASKED, "candidates": [{"message": message, "finish_reason": "stop"} for message in said]},
        {"prompt": ASKED, "completions": said},
        {"prompt": ASKED, "completions": [[message] for message in said]},
        {"completions": [[*ASKED, message] for message in said]},
        {"prompt": ASKED, "outputs": ANSWERS, "responses": None},
    ]
    assert of_rows(cli, *rows) == [expected] * len(rows)
    singles = [{"prompt": ASKED, "completion": [said[0]]}, {"prompt": "Sort: 2 1", "response": ANSWERS[0]}]
    assert [row["score"] for row in of_rows(cli, *singles)] == [pytest.approx(expected["scores"][0], abs=1e-6)] * 2


def test_a_whole_conversation_stays_one_whatever_stands_beside_it(cli):
    talk = [*ASKED, {"role": "assistant", "content": "1 2"}]
    alone, beside, single = of_rows(
        cli,
        {"messages": talk},
        {"messages": talk, "outputs": ["x"]},
        {"prompt": "Sort: 2 1", "response": "1 2", "candidates": ["x"]},
    )
    assert beside == {**alone, "outputs": ["x"]}
    assert single == {**alone, "candidates": ["x"]}


def test_answers_that_are_none_are_errors_in_their_place(cli):
    rows = [{"prompt": "a", "outputs": "text"}, {"prompt": "a", "candidates": []}, {"prompt": "a", "outputs": [3]}]
    result = cli("score", MODEL, stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"error": "wrong_type", "outputs": "text"},
        {"error": "wrong_type"},
        {"error": "wrong_type"},
    ]
    assert "hint: the first is wrong_type at -:1" in result.stderr


def test_the_parquet_of_verl_is_scored_as_it_is(cli, tmp_path):
    """Its main_generation adds `responses` to the prompts that it trains on."""
    rows = [
        {
            "data_source": "tasks",
            "prompt": [{"role": "user", "content": f"Sort: {n} 1"}],
            "ability": "sort",
            "reward_model": {"ground_truth": f"1 {n}", "style": "rule"},
            "extra_info": {"index": n, "split": "test"},
            "responses": [f"1 {n}", f"{n} 1"],
        }
        for n in (2, 3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "verl.parquet")
    plain = of_rows(cli, *({"prompt": row["prompt"], "responses": row["responses"]} for row in rows))
    for line, expected, row in zip(scored(cli, "verl.parquet"), plain, rows, strict=True):
        assert line == {**expected, **{name: row[name] for name in row if name not in ("prompt", "responses")}}


def test_a_csv_has_its_answers_as_a_json_list(cli, tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,responses\nSort: 2 1,"[""1 2"", ""2 1"", ""no""]"\n')
    assert scored(cli, "rows.csv") == of_rows(cli, {"prompt": "Sort: 2 1", "responses": ANSWERS})
    (tmp_path / "bad.csv").write_text("prompt,responses\nSort: 2 1,1 2\n")
    assert json.loads(cli("score", MODEL, "bad.csv").stdout) == {"error": "bad_json"}


def test_a_folder_is_its_files_one_after_the_other(cli, tmp_path):
    rows = [{"id": n, "prompt": f"Sort: {n} 1", "response": "1"} for n in range(4)]
    (tmp_path / "rows").mkdir()
    write_lines(tmp_path / "rows" / "a.jsonl", rows[:2])
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "rows" / "b.parquet")
    (tmp_path / "rows" / "README.md").write_text("about")
    expected = of_rows(cli, *rows)
    assert [line["id"] for line in expected] == [0, 1, 2, 3]
    assert scored(cli, "rows") == expected
    assert scored(cli, f"file://{tmp_path}/rows/a.jsonl") == scored(cli, "rows/a.jsonl")
    said = cli("score", MODEL, "rows", "-o", "rows/scores.jsonl").stderr
    assert "reading 2 files of rows: a.jsonl, b.parquet" in said
    refused = cli("score", MODEL, "rows", "-o", "rows/a.jsonl", "--overwrite")
    assert (refused.code, "is the input rows/a.jsonl" in refused.stderr) == (2, True)
    for name, split in (("train.jsonl", rows[:2]), ("test.jsonl", rows[2:])):
        (tmp_path / "splits").mkdir(exist_ok=True)
        write_lines(tmp_path / "splits" / name, split)
    assert [line["id"] for line in scored(cli, "splits")] == [0, 1]
    assert [line["id"] for line in scored(cli, "path=splits,split=test")] == [2, 3]
    wrong = cli("score", MODEL, "path=splits,weight=2")
    assert (wrong.code, "weight is for prepare" in wrong.stderr) == (2, True)
    assert (
        "error: input 'path=splits,color=2': unknown key color" in cli("score", MODEL, "path=splits,color=2").stderr
    )


def test_a_hub_set_is_scored_by_its_name(cli, monkeypatch):
    rows = [{"id": n, "prompt": f"Sort: {n} 1", "response": "1"} for n in range(3)]
    monkeypatch.setattr(
        "rmcli.rows.sources._load_hub",
        lambda source, split: rows if (source.path, split) == ("org/set", "train") else [],
    )
    assert scored(cli, "org/set") == of_rows(cli, *rows)
    assert scored(cli, "path=org/set,split=test") == []


def test_a_prepared_folder_is_scored_as_it_is_stored(cli, tmp_path):
    result = cli("score", MODEL, BEFORE / "data", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    as_text = scored(cli, BEFORE / "data" / "eval.jsonl")
    order = [int(row) for row in PackedSplit(BEFORE / "data", "eval").row_ids]
    assert [line["row_id"] for line in lines] == order
    in_order = [lines[order.index(row)] for row in sorted(order)]
    assert [line["margin"] for line in in_order] == pytest.approx([line["margin"] for line in as_text], abs=1e-6)
    assert json.loads(result.stderr.splitlines()[-1])["pairs"] == len(lines)
    train = scored(cli, f"path={BEFORE / 'data'},split=train")
    assert len(train) == len(PackedSplit(BEFORE / "data", "train").row_ids)
    assert "holds tokens" in cli("score", MODEL, BEFORE / "data", "--by-prompt").stderr
    assert "has no split test" in cli("score", MODEL, f"path={BEFORE / 'data'},split=test").stderr
    assert "its rows are mapped" in cli("score", MODEL, BEFORE / "data", "--map-fn", "canonical").stderr


def test_a_prepared_folder_of_another_tokenizer_is_refused(cli, tmp_path):
    prepared = cli("prepare", "tasks:50", "-p", "tiny", "-o", "data", "-s", "model.reward_token=natural")
    assert prepared.code == 0, prepared.stderr
    result = cli("score", MODEL, "data")
    assert (result.code, "was prepared with reward token" in result.stderr) == (1, True), result.stderr


def test_a_window_is_bounded_by_lines_and_by_text_and_keeps_the_order():
    assert list(windows.windows("abcdefg", lambda item: 0, most=3)) == [list("abc"), list("def"), ["g"]]
    sizes = [1, 9, 3, 3, 3, 3, 20, 1]
    assert list(windows.windows(sizes, int, most=100, characters=10)) == [[1, 9], [3, 3, 3, 3], [20], [1]]


@pytest.mark.parametrize("units", [Rows(Choice()), Prompts(Choice(by_prompt=True))])
@pytest.mark.parametrize(("row", "expected"), [({}, 1024), ({"own": "x" * 2**17}, 32)])
def test_of_an_input_without_an_end_a_window_is_read_and_no_more(monkeypatch, units, row, expected):
    """Its size is bounded by lines and by text, that of the user's own columns as well."""
    given = 0

    class Endless:
        def readline(self, limit: int) -> bytes:
            nonlocal given
            given += 1
            return json.dumps({"prompt": f"Sort: {given} 1", "responses": ["a", "b"], **row}).encode() + b"\n"

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Endless(), isatty=lambda: False))
    lines = units.of(read("-", None, Contract()))
    first = next(windows.windows(lines, units.size))
    assert len(first) == expected
    assert given <= expected + 1
