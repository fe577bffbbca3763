"""`rmcli report`: a run's page, an evaluation's, runs side by side, and what is refused."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from rmcli.installed import install_command
from rmcli.metrics.intervals import paired_bootstrap
from rmcli.report import paired
from rmcli.report.comparison import by_letter, compare
from rmcli.report.paired import paired_differences
from rmcli.report.run import headline, write_beside_run
from rmcli.report.run_folder import collect
from support.places import REPOSITORY, write_lines
from support.reports import evaluation, one_set, write_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_known_by_the_pairs_held_out_and_an_evaluation_by_its_first_set(here):
    run = write_run(here / "run")
    found = headline(collect(run))
    assert (found.set, found.pairs) == ("held-out", 60)
    assert found.accuracy == one_set()["figures"]["accuracy"]
    assert (found.step, len(found.interval)) == (8, 2)
    last = {"step": 8}
    (run / "metrics.json").write_text(json.dumps(evaluation(run=last, sets=[one_set("gsm8k")])))  # none held out
    found = headline(collect(run))
    assert (found.set, found.accuracy, found.pairs) == ("held-out", pytest.approx(0.9), 60)  # the last evaluation
    assert found.interval is None  # which would count groups: of them only metrics.json knows
    assert headline(collect(write_run(here / "bare", steps=0))).accuracy is None
    (here / "metrics.json").write_text(json.dumps(evaluation()))
    assert headline(collect(here / "metrics.json")).set == "hh_rlhf_harmless"


def test_a_runs_page(cli, here):
    write_run(here / "runs/first")
    shown = cli("report", "runs/first")
    assert (shown.code, shown.stdout) == (0, "runs/first/report.html\n")
    assert "the page says nothing of the data: no-data is not there" in shown.stderr
    text = Path("runs/first/report.html").read_text()
    assert "<title>Run first</title>" in text
    assert "This is a run that finished: tiny, cpu, last step in metrics.jsonl: 8, evaluated at step 8." in text
    assert text.count("<figure>") == 14  # ten curves, four plots of the held-out set
    for caption in (
        "loss",
        "accuracy",
        "accuracy of other sets",
        "held-out accuracy by length",
        "held-out log-loss",
        "learning rate",
    ):
        assert f'aria-label="curve by step: {caption}"' in text
    assert ">gsm8k</text>" in text
    assert "rmcli train -s train.lr=0.001" in text
    assert "# &lt;script&gt;" in text  # resolved.toml, whole
    assert '<td class="number">905</td>' in text  # the median of 902 to 908 tokens a second
    assert "no-data" in text


def test_a_run_of_before_has_a_page(cli, here):
    run = REPOSITORY / "tests" / "written_before" / "run"
    shown = cli("report", run, "-o", "old.html", "--no-audit")
    assert shown.code == 0, shown.stderr
    text = Path("old.html").read_text()
    assert "This is a run that was interrupted: tiny, cpu, last step in metrics.jsonl: 6" in text
    assert 'aria-label="curve by step: loss"' in text


def test_a_run_without_a_step_and_with_lines_cut_short(cli, here):
    run = write_run(here / "bare", steps=0)
    (run / "resolved.toml").unlink()
    assert cli("report", "bare").code == 0
    text = (run / "report.html").read_text()
    assert "No step was logged." in text
    assert "<svg" not in text
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "accuracy": 0.5}\n[1]\n{"step": 2, "lo')
    assert cli("report", "bare", "--overwrite").code == 0
    text = (run / "report.html").read_text()
    assert text.count("<figure>") == 1
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_an_evaluations_page(cli, here):
    Path("out").mkdir()
    Path("out/metrics.json").write_text(json.dumps(evaluation(sets=[])))
    shown = cli("report", "out/metrics.json")
    assert (shown.code, shown.stdout) == (0, "out/report.html\n")
    assert "<title>Evaluation of runs/first/model</title>" in Path("out/report.html").read_text()
    assert cli("report", "out", "--overwrite").code == 0
    wrong = cli("report", "out/metrics.json", "-o", "out/metrics.json", "--overwrite")
    assert "is the input" in wrong.stderr


def test_runs_side_by_side(cli, here):
    write_run(here / "one")
    write_run(here / "two", shift=0.3, lr=2e-3)
    Path("metrics.json").write_text(json.dumps(evaluation()))
    answer = json.loads(cli("report", "one", "two", "metrics.json", "--json").stdout)
    assert answer["report"] == "report.html"
    known = one_set(shift=0.3)["figures"]
    assert answer["runs"]["B"] == {
        "path": "two",
        "status": "a run that finished",
        "headline": {name: known[name] for name in ("accuracy", "interval", "pairs")}
        | {"set": "held-out", "step": 8},
        "notes": [],
    }
    assert answer["runs"]["C"]["headline"]["step"] is None
    figures = answer["figures"]
    assert [figures[letter]["loss"] for letter in "ABC"] == [pytest.approx(0.23), pytest.approx(0.53), None]
    assert [figures[letter]["step"] for letter in "ABC"] == [8, 8, None]
    (its,) = figures["B"]["sets"]
    assert (its["name"], its["figures"]["accuracy"]) == ("held-out", known["accuracy"])
    assert its["figures"]["calibration"]["log_loss"] == known["calibration"]["log_loss"]
    assert ["train.lr", "0.001", "0.002", "-"] in answer["configuration"]
    difference = answer["paired"][0]
    # margins of n/15 - 1: 14 below 0 and one 0 of 60; with 0.3 more 10 below
    assert (difference["first"], difference["second"], difference["set"], difference["pairs"]) == (
        "A",
        "B",
        "held-out",
        60,
    )
    assert (difference["ours"], difference["theirs"]) == ((45 - 0.5 + 0) / 60, 49 / 60)
    assert difference["found"]["difference"] == pytest.approx(44.5 / 60 - 49 / 60, abs=1e-12)
    assert "keeps no margins of single pairs" in answer["paired"][1]["why_not"]
    text = Path("report.html").read_text()
    assert "<title>Comparison of 3 runs</title>" in text
    assert text.count("<figure>") == 9
    assert "A and B on held-out: the interval does not hold 0: B is better on these pairs." in text
    shown = cli("report", "one", "two", "--overwrite")
    assert "on the same held-out pairs" in shown.stderr
    assert shown.stdout == "report.html\n"


def test_configurations_that_are_alike_differ_in_nothing(cli, here):
    write_run(here / "one", steps=0)
    write_run(here / "two", steps=0)
    answer = json.loads(cli("report", "one", "two", "--json", "-o", "sub/both.html").stdout)
    assert (answer["configuration"], answer["versions"]) == ([], [])
    assert Path("sub/both.html").read_text().count("<p>Nothing.</p>") == 2


def test_pairs_are_paired_by_row_and_answers(here):
    one, two = write_run(here / "one"), write_run(here / "two")
    line = {"set": "eval", "first": 0, "second": 1}
    mine = [line | {"row_id": row, "margin": margin} for row, margin in ((7, 1.0), (3, -1.0), (5, 0.0), (9, 2.0))]
    other = [line | {"row_id": row, "margin": margin} for row, margin in ((3, 1.0), (7, 1.0), (5, 1.0), (8, 2.0))]
    mine += [line | {"row_id": 3, "first": 1, "second": 0, "margin": 5.0}]  # other answers of row 3
    write_lines(one / "eval_margins.jsonl", [*mine, {"set": "mine alone", "row_id": 1}])
    write_lines(two / "eval_margins.jsonl", other)
    (found,) = paired_differences(collect(one), collect(two))
    assert (found.set, found.pairs, found.ours, found.theirs) == ("eval", 3, 0.5, 1.0)
    assert (found.not_compared, found.unread) == (3, 1)  # 9, 3 of other answers, 8; the line without answers
    import numpy as np

    expected = paired_bootstrap(np.array([0, 0.5, 1]), np.array([1.0, 1, 1]), np.array([3, 5, 7]))
    assert found.found == expected


def test_why_there_is_nothing_to_pair(here):
    one = write_run(here / "one")
    two = write_run(here / "two", manifest="34" * 32)
    (found,) = paired_differences(collect(one), collect(two))
    assert found.why_not == f"their data is not the same: {'12' * 32} and {'34' * 32}"
    two = write_run(here / "three")
    (two / "eval_margins.jsonl").unlink()
    (found,) = paired_differences(collect(one), collect(two))
    assert found.why_not.endswith("three has no eval_margins.jsonl, which a training writes at its end")
    (two / "eval_margins.jsonl").write_text('{"set": "other", "row_id": 1, "first": 0, "second": 1, "margin": 1}\n{')
    (found,) = paired_differences(collect(one), collect(two))
    assert found.why_not == "they judged no set of the same name"


def test_pairs_without_a_margin_are_counted(cli, here):
    one, two = write_run(here / "one"), write_run(here / "two")
    lines = [{"set": "held-out", "row_id": row, "first": 0, "second": 1, "margin": None} for row in range(4)]
    write_lines(one / "eval_margins.jsonl", lines)
    (found,) = paired_differences(collect(one), collect(two))
    assert (found.why_not, found.not_compared) == ("scores were not finite: of no pair do both have a margin", 60)
    write_lines(one / "eval_margins.jsonl", [*lines[1:], lines[0] | {"margin": 1.0}])
    with (one / "eval_margins.jsonl").open("a") as file:
        file.write('{"set": "held-out", "row')
    (found,) = paired_differences(collect(one), collect(two))
    assert (found.pairs, found.not_compared, found.unread) == (1, 59, 1)
    shown = cli("report", "one", "two")
    for text in (" ".join(shown.stderr.split()), Path("report.html").read_text()):
        assert "Pairs left out, as not both have a finite margin of them: 59." in text
        assert "Lines of eval_margins.jsonl that hold no pair: 1." in text


def test_of_many_runs_each_is_compared_with_the_first_and_each_file_is_read_once(here, monkeypatch):
    runs = [write_run(here / f"run-{number}") for number in range(7)]
    read = []
    real = paired._margins
    monkeypatch.setattr(paired, "_margins", lambda run: (read.append(run.path), real(run))[1])
    for many, expected in ((6, 15), (7, 6)):
        read.clear()
        found = compare(by_letter([collect(run) for run in runs[:many]]))
        assert len(found["paired"]) == expected
        assert read == runs[:many]
    assert {one["first"] for one in found["paired"]} == {"A"}


def test_that_not_all_are_compared_is_said(cli, here):
    names = [write_run(here / f"run-{number}").name for number in range(7)]
    shown = cli("report", *names)
    said = "Of more than 6 runs each is compared with the first alone: A."
    assert said in shown.stderr
    assert said in Path("report.html").read_text()
    assert said not in cli("report", *names[:6], "--overwrite").stderr


def test_a_set_with_a_name_is_paired_where_it_is_the_same_whatever_was_trained_on(here):
    one, two = write_run(here / "one"), write_run(here / "two", manifest="34" * 32)
    line = {"row_id": 1, "first": 0, "second": 1, "margin": 1.0}
    for run in (one, two):
        write_lines(run / "eval_margins.jsonl", [line | {"set": "eval"}, line | {"set": "gsm8k"}])
    held_out, named = paired_differences(collect(one), collect(two))
    assert (held_out.set, held_out.pairs, named.set, named.pairs) == ("eval", 0, "gsm8k", 1)
    told = json.loads((two / "run.json").read_text())
    told["eval_sets"]["gsm8k"]["set"] = "train of 56"
    (two / "run.json").write_text(json.dumps(told))
    _, named = paired_differences(collect(one), collect(two))
    assert named.why_not == "their data is not the same: eval of 56 and train of 56"


def test_what_is_no_run_is_refused_before_anything_is_written(cli, here):
    write_run(here / "one")
    Path("empty").mkdir()
    Path("file.json").write_text("{}")
    for name, said in (
        ("empty", "error: empty holds no run: no whole run.json"),
        ("gone", "error: gone is not there"),
        ("https://x/y", "error: https://x/y is a URL, and a report is made of what lies on this machine"),
        (
            "s3://x/metrics.json",
            "error: s3://x/metrics.json is a URL, and a report is made of what lies on this machine",
        ),
        ("file.json", "error: file.json is no metrics.json of an evaluation"),
    ):
        shown = cli("report", "one", name)
        assert shown.code == 2
        lines = shown.stderr.splitlines()
        assert (lines[0], lines[1][:5], len(lines)) == (said, "hint:", 2)
    assert not Path("report.html").exists()


def test_an_earlier_page_is_replaced_only_when_told_to_and_nothing_else_is(cli, here):
    run = write_run(here / "one", steps=0)
    assert cli("report", "one").code == 0
    again = cli("report", "one")
    assert again.code == 2
    assert again.stderr.splitlines()[-2:] == [
        "error: one/report.html exists and is left alone",
        "hint: write another file, or --overwrite earlier run report",
    ]
    assert cli("report", "one", "--overwrite").code == 0
    (run / "report.html").write_text("mine")
    kept = cli("report", "one", "--overwrite")
    assert "one/report.html holds no run report and is left alone" in kept.stderr
    assert (run / "report.html").read_text() == "mine"


@pytest.mark.parametrize("others", [(), ("two",)])
@pytest.mark.parametrize("name", ["run.json", "resolved.toml", "metrics.jsonl", "metrics.json", "eval_margins.jsonl"])
def test_no_file_that_is_read_is_replaced_even_where_it_is_empty(cli, here, name, others):
    run = write_run(here / "one", steps=0)
    write_run(here / "two", steps=0)
    if name != "run.json":
        (run / name).write_text("")
    before = (run / name).read_bytes()
    shown = cli("report", "one", *others, "-o", f"one/{name}", "--overwrite")
    assert (shown.code, (run / name).read_bytes()) == (2, before)
    assert f"error: one/{name} is the input one/{name}: it would be replaced" in shown.stderr


def test_without_matplotlib_training_says_how_to_get_the_page_and_the_command_is_refused(
    cli, here, monkeypatch, capsys
):
    run = write_run(here / "one", steps=0)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    advice = f"run: {install_command('report')}"
    shown = cli("report", "one")
    assert shown.code == 2
    assert shown.stderr.splitlines() == [
        "error: a report draws with matplotlib, which is not installed",
        f"hint: {advice}",
    ]
    assert write_beside_run(run) is None
    assert capsys.readouterr().err == (
        f"no report.html: a report draws with matplotlib, which is not installed; {advice}\n"
    )
    monkeypatch.undo()
    assert write_beside_run(run) == run / "report.html"
    assert write_beside_run(run) == run / "report.html"  # a run that goes on writes it again
    (run / "report.html").write_text("mine")
    assert write_beside_run(run) is None
    assert (run / "report.html").read_text() == "mine"
    assert (
        "no report.html: it cannot be made: 'splits'"
        in (write_beside_run(run, {"findings": []}), capsys.readouterr().err)[1]
    )
