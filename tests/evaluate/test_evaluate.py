"""`rmcli evaluate`: its figures against those of `score`, sets told apart, two models, what is kept and refused."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from rmcli.evaluate.edits import EDITS
from rmcli.evaluate.sample import Sample
from rmcli.evaluate.screen import coarser, with_ties_apart
from rmcli.lines.read import Line
from rmcli.records import PreferenceGroup
from support.cli import run_cli
from support.places import REPOSITORY, write_lines

MODEL = REPOSITORY / "tests" / "written_before" / "model"
TASKS = [
    {
        "prompt": f"Sort: {n % 7} {n % 5} 1",
        "chosen": " ".join(sorted((str(n % 7), str(n % 5), "1"))),
        "rejected": f"{n % 5} {n % 3}" + " 9" * (n % 4),
        "topic": "odd" if n % 2 else "even",
        "size": n,
    }
    for n in range(40)
]


@pytest.fixture
def evaluated(cli, tmp_path):
    write_lines(tmp_path / "tasks.jsonl", TASKS)

    def run(*options: object, code: int = 0, model: Path = MODEL) -> dict:
        result = cli("evaluate", model, "tasks.jsonl", "--json", "-o", "out", "--overwrite", *options)
        assert result.code == code, result.stderr
        return json.loads(result.stdout) | {"said": result.stderr}

    return run


def figures(found: dict) -> dict:
    return found["sets"][0]["figures"]


def of_the_other_sign(folder: Path) -> Path:
    """The model whose every score is the negative one."""
    folder.mkdir()
    for file in MODEL.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = -weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_figures_are_those_of_the_scores_that_score_writes(evaluated, cli):
    found = figures(evaluated())
    scored = [json.loads(line) for line in cli("score", MODEL, "tasks.jsonl", "-q").stdout.splitlines()]
    margins = np.array([line["chosen_score"] - line["rejected_score"] for line in scored])
    assert found["pairs"] == found["groups"] == 40
    assert found["accuracy"] == float(((margins > 0) + 0.5 * (margins == 0)).mean())
    assert found["mean_margin"] == pytest.approx(margins.mean(), abs=1e-7)
    assert found["calibration"]["log_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), abs=1e-7)
    scores = [line[name] for line in scored for name in ("chosen_score", "rejected_score")]
    assert (found["scores"]["min"], found["scores"]["max"]) == pytest.approx((min(scores), max(scores)), abs=1e-7)


def test_pairs_are_told_apart_by_source_turns_length_and_the_columns_asked_for(evaluated):
    found = evaluated("--by", "topic", "--by", "size")
    by = found["sets"][0]["by"]
    assert list(by) == ["source", "length_difference", "turns", "topic", "size"]
    assert all(sum(row["pairs"] for row in rows) == 40 for rows in by.values())
    assert [(row["value"], row["pairs"]) for row in by["topic"]] == [("even", 20), ("odd", 20)]
    assert [(row["value"], row["pairs"]) for row in by["source"]] == [("tasks.jsonl", 40)]
    assert [(row["value"], row["pairs"]) for row in by["turns"]] == [(1, 40)]
    assert [(row["value"], row["pairs"]) for row in by["size"]] == [
        ("1: 0 to 7.8", 8),
        ("2: 7.8 to 15.6", 8),
        ("3: 15.6 to 23.4", 8),
        ("4: 23.4 to 31.2", 8),
        ("5: 31.2 to 39", 8),
    ]
    whole = figures(found)["accuracy"]
    assert sum(row["accuracy"] * row["pairs"] for row in by["topic"]) / 40 == pytest.approx(whole, abs=1e-12)


def test_a_column_called_source_is_the_source(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{**row, "source": row["topic"]} for row in TASKS])
    found = json.loads(cli("evaluate", MODEL, "rows.jsonl", "--json", "--format-bias", 0).stdout)
    assert [row["value"] for row in found["sets"][0]["by"]["source"]] == ["even", "odd"]


def test_a_model_of_the_other_sign_is_right_where_this_one_is_wrong(evaluated, tmp_path):
    other = of_the_other_sign(tmp_path / "other")
    found = evaluated("--against", other)
    mine, theirs = figures(found)["accuracy"], found["sets"][0]["against"]
    assert theirs["pairs"] == 40
    assert theirs["accuracy"] == pytest.approx(1 - mine, abs=1e-12)
    assert theirs["difference"]["difference"] == pytest.approx(2 * mine - 1, abs=1e-12)
    low, high = theirs["difference"]["interval"]
    assert low < 2 * mine - 1 < high
    assert found["against"] == str(other)
    assert found["against_sha256"] != found["model_sha256"]


def test_a_model_against_itself_is_no_better_and_no_worse(evaluated):
    difference = evaluated("--against", MODEL)["sets"][0]["against"]["difference"]
    assert (difference["difference"], difference["interval"], difference["favours_ours"]) == (0.0, [0.0, 0.0], 0.5)


def test_the_worst_pairs_come_as_text_worst_first(evaluated, cli):
    worst = evaluated()["sets"][0]["worst"]
    scored = [json.loads(line) for line in cli("score", MODEL, "tasks.jsonl", "-q").stdout.splitlines()]
    margins = [line["chosen_score"] - line["rejected_score"] for line in scored]
    assert [pair["margin"] for pair in worst] == pytest.approx(sorted(margins)[:20], abs=1e-7)
    row = TASKS[int(np.argmin(margins))]
    assert {name: worst[0][name] for name in ("prompt", "chosen", "rejected")} == {
        "prompt": f"user: {row['prompt']}",
        "chosen": row["chosen"],
        "rejected": row["rejected"],
    }
    assert worst[0]["where"] == f"tasks.jsonl:{int(np.argmin(margins)) + 1}"


def test_a_prepared_folder_is_evaluated_as_it_is_stored(tiny_run, cli):
    stored = json.loads(cli("evaluate", tiny_run.model, tiny_run.data, "--json", "--format-bias", 0).stdout)
    texts = tiny_run.data / "eval.jsonl"
    written = json.loads(cli("evaluate", tiny_run.model, texts, "--json", "--format-bias", 0).stdout)
    assert figures(stored)["pairs"] == figures(written)["pairs"] > 100
    assert figures(stored)["accuracy"] == figures(written)["accuracy"] > 0.6
    assert figures(stored)["mean_margin"] == pytest.approx(figures(written)["mean_margin"], abs=1e-5)
    assert stored["sets"][0]["by"]["turns"] == []
    ours, theirs = stored["sets"][0]["worst"][0], written["sets"][0]["worst"][0]
    assert theirs["prompt"].removeprefix("user: ") in ours["prompt"]
    assert ours["margin"] == pytest.approx(theirs["margin"], abs=1e-5)


def test_what_says_nothing_of_better_and_worse_is_counted(cli, tmp_path):
    rows = [*TASKS[:3], {"prompt": "a", "responses": ["b", "c"]}, {"prompt": "a", "chosen": 3, "rejected": "b"}]
    tie = {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}
    write_lines(tmp_path / "rows.jsonl", [*rows, tie])
    result = cli("evaluate", MODEL, "rows.jsonl", "--json")
    one = json.loads(result.stdout)["sets"][0]
    assert (one["lines"], one["figures"]["pairs"], one["figures"]["tied_labels"]) == (6, 3, 1)
    assert one["errors"] == {"bad_comparisons": 1, "wrong_type": 1}
    assert "note: rows: 1 of 6 lines have no figure: wrong_type" in result.stderr


def test_nothing_to_compare_is_an_error(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}])
    result = cli("evaluate", MODEL, "rows.jsonl", "-o", "out")
    assert result.code == 1
    assert "rows.jsonl: all 1 lines call their answers equally good" in result.stderr
    assert not Path("out").exists()


def test_a_set_without_anything_to_compare_costs_the_others_nothing(cli, tmp_path):
    write_lines(tmp_path / "ties.jsonl", [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}])
    write_lines(tmp_path / "good.jsonl", TASKS[:3])
    result = cli("evaluate", MODEL, "ties.jsonl", "good.jsonl", "-o", "out", "--against", MODEL)
    assert result.code == 1
    why = "ties.jsonl: all 1 lines call their answers equally good"
    assert f"error: {why}\nhint: docs/format.md says what the reasons mean" in result.stderr
    assert "figures in out/metrics.json and out/report.html" in result.stderr
    found = json.loads(Path("out/metrics.json").read_text())
    assert found["not_measured"] == {"ties": why}
    (one,) = found["sets"]
    assert (one["name"], one["figures"]["pairs"], one["against"]["pairs"]) == ("good", 3, 3)
    assert why in Path("out/report.html").read_text()


def test_a_set_below_min_accuracy_ends_with_1_and_keeps_its_figures(evaluated, cli):
    accuracy = figures(evaluated())["accuracy"]
    assert 0 < accuracy < 1
    evaluated("--min-accuracy", accuracy)
    said = evaluated("--min-accuracy", accuracy + 0.001, code=1)["said"]
    assert f"error: accuracy below --min-accuracy {accuracy + 0.001:g}: tasks {accuracy:.4f}" in said
    assert Path("out/metrics.json").is_file()


def test_sets_have_names_map_functions_and_a_number_of_rows_of_their_own(evaluated, real_data):
    harmless = f"path={real_data / 'hh_rlhf_harmless.jsonl.gz'},name=hh,map_fn=hh_rlhf,max_rows=5"
    found = evaluated(harmless, "path=tasks.jsonl,name=again,max_rows=7")
    assert [(one["name"], one["lines"], one["map_fn"]) for one in found["sets"]] == [
        ("tasks", 40, "auto"),
        ("hh", 5, "hh_rlhf"),
        ("again", 7, "auto"),
    ]


def test_suites_stand_beside_sets_and_below_min_accuracy_too(evaluated, tmp_path):
    row = {"prompt": "Sort: 2 1", "chosen": "1 2", "rejected": "2 1", "subset": "hep-go", "id": 1}
    write_lines(tmp_path / "rb.jsonl", [row, {**row, "chosen": "2 1", "rejected": "1 2"}])
    found = evaluated("--suite", "reward-bench=rb.jsonl", "--min-accuracy", 0.51, "--format-bias", 0, code=1)
    assert [(one["suite"], one["headline"]) for one in found["suites"]] == [("reward-bench", 0.5)]
    assert len(found["sets"]) == 1
    assert "error: accuracy below --min-accuracy 0.51: reward-bench 0.5000" in found["said"]
    shown = evaluated_on_screen("--suite", "reward-bench=rb.jsonl")
    assert "reward-bench: 0.500" in shown


def evaluated_on_screen(*arguments: object) -> str:
    result = run_cli("evaluate", MODEL, "-q", *arguments)
    assert result.code == 0, result.stderr
    return result.stdout


def test_a_pair_that_is_cut_tells_nothing_of_length(cli, tmp_path):
    """Each conversation is cut for itself: they begin and are as long as the cut left them."""
    row = {"prompt": "Sort: " + "9 1 " * 20, "chosen": "1 " * 15, "rejected": "1 1"}
    write_lines(tmp_path / "rows.jsonl", [row, {**row, "prompt": "Sort: 9 1"}])
    cut = ("-s", "data.max_length=64")
    one = json.loads(cli("evaluate", MODEL, "rows.jsonl", "--json", *cut).stdout)["sets"][0]
    assert (one["truncated"], one["figures"]["pairs"]) == (1, 2)
    assert one["figures"]["length"]["better_is_longer"]["pairs"] == 1
    assert one["figures"]["length"]["equal_length"]["pairs"] == 0
    assert [row["pairs"] for row in one["by"]["length_difference"]] == [1]
    assert [(row["value"], row["pairs"]) for row in one["by"]["truncated"]] == [(False, 1), (True, 1)]
    bold = one["format_bias"][0]
    assert (bold["edit"], bold["answers"], bold["cut_or_unscored"]) == ("bold", 1, 1)


def test_odd_values_of_a_column_are_told_apart(cli, tmp_path):
    odd = [None, float("nan"), "", True, [1], {"a": 1}, 10**400, float("inf"), "\x1b]0;t\x07", "[red]"]
    write_lines(tmp_path / "rows.jsonl", [{**TASKS[1], "odd[/x]": value} for value in odd])
    found = json.loads(cli("evaluate", MODEL, "rows.jsonl", "--by", "odd[/x]", "--json", "-o", "out").stdout)
    values = [row["value"] for row in found["sets"][0]["by"]["odd[/x]"]]
    expected = (True, "(none)", "[1]", "[red]", "\x1b]0;t\x07", "inf", str(10**400), "{'a': 1}")
    assert len(values) == 8
    assert set(values) == set(expected)
    assert EDITS["list"]("One sentence.") == "One sentence."
    assert EDITS["list"]("1. a b. c\n2. d. e") == "1. a b. c\n2. d. e"


def test_the_change_of_an_edit_is_that_of_the_scores(evaluated, cli, tmp_path):
    bias = {one["edit"]: one for one in evaluated("--format-bias", 1000)["sets"][0]["format_bias"]}
    assert (bias["list"]["answers"], bias["list"]["unchanged"]) == (0, 40)  # no answer has two sentences
    assert (bias["list"]["mean_change"], bias["list"]["rises"]) == (None, None)
    edited = [{"prompt": row["prompt"], "responses": [row["chosen"], EDITS["bold"](row["chosen"])]} for row in TASKS]
    write_lines(tmp_path / "bold.jsonl", edited)
    scores = [json.loads(line)["scores"] for line in cli("score", MODEL, "bold.jsonl", "-q").stdout.splitlines()]
    changes = np.array([after - before for before, after in scores])
    assert (bias["bold"]["answers"], bias["bold"]["rises"]) == (40, float((changes > 0).mean()))
    assert bias["bold"]["mean_change"] == pytest.approx(changes.mean(), abs=1e-7)
    half = 1.96 * changes.std(ddof=1) / 40**0.5
    assert bias["bold"]["interval"] == pytest.approx([changes.mean() - half, changes.mean() + half], abs=1e-7)


def test_a_sample_is_bounded_and_any_answer_may_be_in_it():
    counts = np.zeros(30)
    for seed in range(300):
        sample = Sample(10)
        sample._random.seed(seed)
        lines = [Line(PreferenceGroup(((n,),))) for n in range(30)]  # type: ignore[arg-type]
        for line in lines:
            sample.offer(line, 0)
        assert len(sample.held) == 10
        for one in sample.held:
            counts[one.conversations[0][0]] += 1  # type: ignore[call-overload]
    assert counts.min() > 60
    assert counts.max() < 140  # 100 expected, standard deviation 8


def test_bars_stand_on_either_side_of_zero():
    edges = [-0.4, -0.3, -0.2, -0.1, 0.0, *(n / 10 for n in range(1, 27))]
    rows = coarser(edges, [1] * 30)
    assert sum(count for _, _, count in rows) == 30
    assert [low for low, _, _ in rows][:3] == [-0.4, -0.3, 0.0]


def test_pairs_of_one_score_are_neither_right_nor_wrong():
    rows = [(-1.0, 0.0, 2), (0.0, 1.0, 5)]
    assert with_ties_apart(rows, 3) == [(-1.0, 0.0, 2), (0.0, 0.0, 3), (0.0, 1.0, 2)]
    assert with_ties_apart(rows, 0) == rows


def test_colours_are_for_terminals_and_not_for_no_color(cli, tmp_path):
    write_lines(tmp_path / "tasks.jsonl", TASKS)
    assert "\x1b[" not in cli("evaluate", MODEL, "tasks.jsonl", "--format-bias", 0).stdout
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = on_a_terminal(environment)
        assert ("\x1b[32m" in shown or "\x1b[31m" in shown) == coloured
        assert "tasks: margins, right above 0" in shown


def on_a_terminal(environment: dict[str, str]) -> str:
    """What the command writes to stdout where that is a terminal."""
    main, other = os.openpty()
    ours = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "rmcli", "evaluate", str(MODEL), "tasks.jsonl", "-q", "--format-bias", "0"]
    process = subprocess.Popen(
        command,
        stdout=other,
        stderr=subprocess.DEVNULL,
        env=ours | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color"} | environment,
    )
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # its other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.slow
def test_two_processes_have_the_figures_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with gzip.open("many.jsonl.gz", "wt") as file:
        file.writelines(
            json.dumps(row | {"prompt": f"{row['prompt']} {n}"}) + "\n" for n in range(60) for row in TASKS
        )
    found = []
    for options in ((), ("--num-processes", "2")):
        command = [sys.executable, "-m", "rmcli", "evaluate", str(MODEL), "many.jsonl.gz", "--by", "topic", "--json"]
        result = subprocess.run(
            [*command, "--against", str(MODEL), *options],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert found[0]["sets"] == found[1]["sets"]
    assert [one["machine"]["processes"] for one in found] == [1, 2]
