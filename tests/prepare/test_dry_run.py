"""`prepare -n` meets at once what the run would meet, ends as it would, and writes nothing."""

import json
import os
from pathlib import Path

import datasets
import pytest

from support.places import write_lines

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
BY = ("--map-fn", "canonical", "-p", "tiny")


def test_the_first_row_of_each_source_and_what_becomes_of_it(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", [{**PAIR, "topic": "t"}, {}])
    write_lines(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "good"}, PAIR])
    write_lines(tmp_path / "c.jsonl", [PAIR])
    write_lines(tmp_path / "d.jsonl", [{**PAIR, "chosen": "a <|reserved_special_token_0|>"}])
    write_lines(tmp_path / "e.jsonl", [{**PAIR, "chosen": "long " * 9000}])
    (tmp_path / "empty.jsonl").write_text("\n")
    before = sorted(tmp_path.iterdir())
    result = cli("prepare", *[f"{name}.jsonl" for name in ("a", "b", "c", "d", "e", "empty")], *BY, "-n", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["plan"]["first_rows"] == [
        {"row": f"{tmp_path / 'a.jsonl'}:1", "becomes": "kept: 9 tokens shared by 2 answers"},
        {"row": f"{tmp_path / 'b.jsonl'}:1", "becomes": "rejected as missing_column rejected"},
        {"row": f"{tmp_path / 'c.jsonl'}:1", "becomes": f"duplicate of {tmp_path / 'a.jsonl'}:1"},
        {"row": f"{tmp_path / 'd.jsonl'}:1", "becomes": "rejected as reward_token_in_text"},
        {"row": f"{tmp_path / 'e.jsonl'}:1", "becomes": "rejected as overlong"},
        {"row": str(tmp_path / "empty.jsonl"), "becomes": "no row"},
    ]
    assert f"note: not read: topic (columns of {tmp_path / 'a.jsonl'})" in result.stderr
    assert f"{tmp_path / 'b.jsonl'}:1: does --map-fn fit the data?" in result.stderr
    assert sorted(tmp_path.iterdir()) == before
    shown = cli("prepare", "a.jsonl", *BY, "-n").stdout
    assert f"# first_rows = {tmp_path / 'a.jsonl'}:1 | kept: 9 tokens shared by 2 answers\n" in shown


def test_a_source_of_weight_0_takes_no_row_and_stdin_is_read_for_one(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", [PAIR])
    plan = json.loads(cli("prepare", "--source", "path=a.jsonl,weight=1e-9", *BY, "-n", "--json").stdout)["plan"]
    assert plan["first_rows"] == [{"row": f"{tmp_path / 'a.jsonl'}:1", "becomes": "not taken"}]
    plan = json.loads(cli("prepare", "-", *BY, "-n", "--json", stdin=json.dumps(PAIR)).stdout)["plan"]
    assert plan["first_rows"] == [{"row": "-:1", "becomes": "kept: 9 tokens shared by 2 answers"}]


def test_rows_of_one_key_are_one_group_here_too(cli, tmp_path):
    ratings = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"), 1)
    rows = [{"prompt": "q", "response": text, "helpfulness": n, **ratings} for n, text in enumerate("abc")]
    write_lines(tmp_path / "rows.jsonl", rows)
    result = cli("prepare", "rows.jsonl", "--map-fn", "helpsteer2", "-p", "tiny", "-n", "--json")
    (first,) = json.loads(result.stdout)["plan"]["first_rows"]
    assert first["becomes"].endswith("tokens shared by 3 answers")


def test_a_set_on_the_hub_is_streamed_for_its_row(cli, monkeypatch):
    asked = {}

    def load_dataset(name, **given):
        asked[name] = given
        return datasets.Dataset.from_list([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    result = cli("prepare", "org/pairs", *BY, "-n")
    assert result.code == 0, result.stderr
    assert asked == {"org/pairs": {"split": "train", "streaming": True}}


def raises_on_its_row(folder: Path) -> list[str]:
    (folder / "m.py").write_text("def f(row):\n    return {**row, 'chosenn': 1}\n")
    return ["rows.jsonl", "--map-fn", "m.py:f"]


def has_no_file(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "gone.py:f"]


def has_no_source_text(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "builtins:dict"]


def output_is_full(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("x")
    return ["rows.jsonl", "--map-fn", "canonical"]


def output_is_full_and_not_ours(folder: Path) -> list[str]:
    return [*output_is_full(folder), "--overwrite"]


def output_is_a_file(folder: Path) -> list[str]:
    (folder / "out").write_text("x")
    return ["rows.jsonl", "--map-fn", "canonical"]


def output_is_below_a_file(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "canonical", "-o", "rows.jsonl/out"]


def has_no_rows(folder: Path) -> list[str]:
    (folder / "rows.jsonl").write_text("")
    return ["rows.jsonl", "--map-fn", "canonical"]


def has_no_template(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "canonical", "--chat-template", "gone.jinja"]


def has_no_model(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "canonical", "-s", "model.pretrained_model_name_or_path=./gone"]


def is_too_long_for_the_model(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "canonical", "-s", "data.max_length=4096", "-s", "data.max_packed_length=4096"]


def has_no_evaluation_file(folder: Path) -> list[str]:
    return ["rows.jsonl", "--map-fn", "canonical", "--decontaminate", "gone.jsonl"]


@pytest.mark.parametrize(
    "fault",
    [
        raises_on_its_row,
        has_no_file,
        has_no_source_text,
        output_is_full,
        output_is_full_and_not_ours,
        output_is_a_file,
        output_is_below_a_file,
        has_no_rows,
        has_no_template,
        has_no_model,
        is_too_long_for_the_model,
        has_no_evaluation_file,
    ],
)
def test_it_ends_as_the_run_would(cli, tmp_path, fault):
    write_lines(tmp_path / "rows.jsonl", [PAIR])
    arguments = ["prepare", "-o", "out", "-p", "tiny", *fault(tmp_path)]
    before = sorted(tmp_path.rglob("*"))
    dry = cli(*arguments, "-n")
    assert sorted(tmp_path.rglob("*")) == before
    real = cli(*arguments)
    assert real.code in (1, 2)
    assert (dry.code, errors_in(dry.stderr)) == (real.code, errors_in(real.stderr))
    (error,) = errors_in(dry.stderr)
    if "# plan" in dry.stdout:  # what is found out before there is a plan has none to show
        assert f"# error = {' '.join(error.removeprefix('error: ').split())}" in " ".join(dry.stdout.split())


def errors_in(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_before_the_work(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [PAIR])
    (tmp_path / "locked").mkdir(mode=0o500)
    assert (
        "error: cannot write locked/out: Permission denied"
        in cli("prepare", "rows.jsonl", *BY, "-o", "locked/out", "-n").stderr
    )
