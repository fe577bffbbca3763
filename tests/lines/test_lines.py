"""What `score` reads and writes back: every file that prepare reads, labelled or not, and the user's own columns."""

import datetime
import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmcli import output
from rmcli.lines.read import read
from rmcli.rows.map_fns.contract import Contract
from rmcli.score import run as score
from rmcli.scorer.scorer import Scorer
from support.places import REPOSITORY, write_lines

MODEL = REPOSITORY / "tests" / "written_before" / "model"
LONG = "Sort: " + " ".join(str(n % 10) for n in range(60))
TOO_LONG = "9 " * 90


def scored(cli, *arguments: object, stdin: str | None = None) -> list[dict]:
    result = cli("score", MODEL, "-q", *arguments, stdin=stdin)
    assert result.code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def talk(prompt: str, reply: str) -> dict:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]}


@pytest.mark.parametrize("kind", ["true", "false"])
def test_a_score_is_the_same_alone_in_a_pair_among_many_and_in_any_window(cli, monkeypatch, kind):
    setting = ("-s", f"model.use_varlen_attn={kind}")
    answers = ["1 2 3", TOO_LONG, "3 2 1", "0 " * 80, "9 8"]
    rows = [talk(LONG, answer) for answer in answers]
    rows += [{"prompt": LONG, "chosen": answers[0], "rejected": other} for other in answers[1:]]
    rows += [{"prompt": LONG, "responses": answers}, {"prompt": LONG, "response": answers[3]}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    lines = scored(cli, *setting, stdin=text)
    alone = [scored(cli, *setting, stdin=json.dumps(row))[0] for row in rows[:5]]
    assert [line.get("truncated", False) for line in alone] == [False, True, False, True, False]
    expected = [pytest.approx(line["score"], abs=1e-6) for line in alone]
    assert [line["score"] for line in lines[:5]] == expected
    assert [line["chosen_score"] for line in lines[5:9]] == expected[:1] * 4
    assert [line["rejected_score"] for line in lines[5:9]] == expected[1:]
    assert lines[9]["scores"] == expected
    assert lines[10]["score"] == expected[3]
    monkeypatch.setattr(score, "WINDOW", 2)
    packed = ("-s", "data.max_packed_length=256")  # the five answers no longer fit one forward
    assert scored(cli, *setting, *packed, stdin=text)[9]["scores"] == expected


def test_answers_that_share_a_prompt_share_its_tokens(monkeypatch):
    from rmcli.config.resolve import resolve, trained_model_layers
    from rmcli.scorer.tokens import encode_apart, share
    from rmcli.tokens.encode import Encoder
    from rmcli.tokens.tokenizer import load_tokenizer

    base, here = trained_model_layers(MODEL)
    config = resolve(None, base=base, options=[here]).config
    encoder = Encoder(load_tokenizer(config.model), config.data.max_length, config.data.overlong)
    group = next(read(str(REPOSITORY / "tests" / "written_before" / "data" / "eval.jsonl"), None, Contract())).group
    (sides,) = encode_apart(encoder, [group])
    tokens = share(sides)
    (together,) = encoder.encode([group])
    assert len(tokens.prefix) == len(together.prefix) > 10
    assert tokens.num_tokens == together.num_tokens


def test_answers_need_no_labels_and_one_may_stand_alone(cli):
    answers = ["1 2", "2 1", "no"]
    rows = [{"prompt": "Sort: 2 1", "responses": answers}, {"prompt": "Sort: 2 1", "responses": answers[:2]}]
    rows += [{"prompt": "Sort: 2 1", "responses": answers[:1]}, {"prompt": "Sort: 2 1", "response": answers[0]}]
    rows += [talk("Sort: 2 1", "1 2")["messages"], talk("Sort: 2 1", "1 2"), {"prompt": "Sort: 2 1", "responses": []}]
    result = cli("score", MODEL, "--json", stdin="".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    best = pytest.approx(lines[3]["score"], abs=1e-6)
    assert [list(line) for line in lines] == [["scores"]] * 3 + [["score"]] * 3 + [["error"]]
    assert [len(line["scores"]) for line in lines[:3]] == [3, 2, 1]
    assert [line["scores"][0] for line in lines[:3]] == [best] * 3
    assert [line["score"] for line in lines[3:6]] == [best] * 3
    assert lines[6] == {"error": "wrong_type"}
    assert "pairs" not in json.loads(result.stderr.splitlines()[-3 if "hint" in result.stderr else -2])


def test_own_columns_come_back_and_none_takes_the_place_of_a_result(cli):
    rows = [
        {"id": 7, **talk("a", "b"), "tags": ["x", {"y": None}], "score": 99},
        {"id": "é", "prompt": "a", "chosen": "b", "rejected": "c", "margin": 3.0, "lang": "fr"},
        {"id": 9, "messages": []},
    ]
    result = cli("score", MODEL, stdin="".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert (first["id"], first["tags"]) == (7, ["x", {"y": None}])
    assert abs(first["score"]) < 5
    assert "note: the input's column score does not come back" in result.stderr
    assert list(second) == ["chosen_score", "rejected_score", "margin", "id", "lang"]
    assert second["margin"] == pytest.approx(second["chosen_score"] - second["rejected_score"], abs=1e-6)
    assert third == {"error": "empty_conversation", "id": 9}


@pytest.mark.parametrize("ending", ["jsonl", "json lines", "json", "csv", "parquet"])
def test_every_file_that_prepare_reads_gives_the_same_scores(cli, tmp_path, ending):
    rows = [{"id": f"r{n}", "prompt": f"Sort: {n} 1", "chosen": f"1 {n}", "rejected": f"{n} 1"} for n in range(2, 6)]
    expected = scored(cli, stdin="".join(json.dumps(row) + "\n" for row in rows))
    mark = "\ufeff"
    path = tmp_path / f"rows.{ending.split()[0]}"
    if ending in ("jsonl", "json lines"):
        path.write_text(mark + "".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        path.write_text(mark + json.dumps(rows, indent=1))
    elif ending == "csv":
        path.write_text(mark + "id,prompt,chosen,rejected\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert scored(cli, path) == expected
    assert [line["id"] for line in expected] == ["r2", "r3", "r4", "r5"]


def test_columns_that_json_has_no_value_for_come_back_as_text(cli, tmp_path):
    row = {"prompt": "a", "response": "b", "at": datetime.date(2024, 5, 6), "weight_kg": float("nan")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (line,) = scored(cli, "rows.parquet")
    assert (line["at"], line["weight_kg"]) == ("2024-05-06", "nan")


def test_a_map_function_reads_the_rows(cli, tmp_path):
    rows = [
        {"instruction": "Sort:", "input": f"{n} 1", "chosen": f"1 {n}", "rejected": "no", "id": n} for n in (2, 3)
    ]
    plain = [{"prompt": f"Sort:\n\n{n} 1", "chosen": f"1 {n}", "rejected": "no", "id": n} for n in (2, 3)]
    write_lines(tmp_path / "rows.jsonl", rows)
    expected = scored(cli, stdin="".join(json.dumps(row) + "\n" for row in plain))
    assert scored(cli, "rows.jsonl", "--map-fn", "instruction") == expected
    assert scored(cli, "-", "--map-fn", "auto", stdin=(tmp_path / "rows.jsonl").read_text()) == expected
    (tmp_path / "mine.py").write_text(
        "def f(row):\n"
        "    return {'prompt': 'Sort:\\n\\n' + row['input'], 'chosen': row['chosen'], 'rejected': row['rejected']}\n"
    )
    own = scored(cli, "rows.jsonl", "--map-fn", "mine.py:f")
    assert [line["margin"] for line in own] == [line["margin"] for line in expected]
    refused = cli("score", MODEL, "rows.jsonl", "--map-fn", "helpsteer2")
    assert refused.code == 2
    assert "puts several rows together" in refused.stderr


def test_a_long_job_says_in_a_log_how_far_it_is(cli, monkeypatch, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [talk(f"Sort: {n} 1", "1") for n in range(40)])
    monkeypatch.setattr(score, "WINDOW", 10)
    monkeypatch.setattr(score, "SECONDS_BETWEEN_LINES", 0.0)
    said = cli("score", MODEL, "rows.jsonl").stderr.splitlines()
    header = next(number for number, line in enumerate(said) if line.split()[:2] == ["lines", "lines/s"])
    values = [line.split() for line in said[header + 1 : -1]]
    values = [line for line in values if line[0].isdecimal() and len(line) == 4]
    assert [int(line[0]) for line in values] == list(range(1, 41))
    assert all(line[2] == "40" and line[3].startswith("0:0") for line in values)
    assert values[-1][3] == "0:00:00"
    assert not [line for line in cli("score", MODEL, "rows.jsonl", "-q").stderr.splitlines() if "lines/s" in line]


def test_ctrl_c_says_how_far_it_came(cli, monkeypatch, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [talk(f"Sort: {n} 1", "1") for n in range(40)])
    monkeypatch.setattr(score, "WINDOW", 10)
    real, windows = Scorer.score, []

    def interrupted(self, groups, advance):
        windows.append(len(groups))
        if len(windows) == 3:
            raise KeyboardInterrupt
        return real(self, groups, advance)

    monkeypatch.setattr(Scorer, "score", interrupted)
    result = cli("score", MODEL, "rows.jsonl", "-o", "out.jsonl")
    assert result.code == 130
    kept = f"{tmp_path}/out.jsonl.part holds their scores, and the same command goes on from there"
    assert f"note: interrupted after 20 of 40 lines; {kept}" in result.stderr
    assert sorted(path.name for path in Path().glob("*out.jsonl*")) == ["out.jsonl.part", "out.jsonl.part.settings"]
    windows[:] = [0, 0]
    result = cli("score", MODEL, "rows.jsonl", "-o", "other.jsonl")
    assert "note: interrupted after 0 of 40 lines; nothing is written to other.jsonl" in result.stderr
    assert not list(Path().glob("*other.jsonl*"))
    windows.clear()
    result = cli("score", MODEL, "rows.jsonl")
    assert "interrupted after 20 of 40 lines; their scores are written" in result.stderr
    assert len(result.stdout.splitlines()) == 20


def test_on_a_terminal_without_a_file_it_says_that_it_reads_stdin(monkeypatch):
    class Terminal:
        buffer = io.BytesIO(json.dumps(talk("a", "b")).encode())

        def isatty(self) -> bool:
            return True

    said = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(output, "say", said.append)
    assert [line.problem for line in read("-", None, Contract())] == [None]
    assert said == ["reading JSON lines from stdin; Ctrl-D ends them"]
