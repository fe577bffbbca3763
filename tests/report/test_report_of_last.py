"""What of a run folder is of its last evaluation, how far the run came, how it stopped."""

import json
from pathlib import Path

import pytest

from rmcli.report.paired import paired_differences
from rmcli.report.run import headline, how_it_stopped
from rmcli.report.run_folder import collect
from support.reports import evaluation, one_set, write_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("step", "of"), [(4, "step 4"), (12, "step 12"), (None, "no step that it names")])
def test_an_evaluation_of_another_step_than_the_last_is_left_out(cli, here, step, of):
    run, other = write_run(here / "one"), write_run(here / "two")
    (run / "metrics.json").write_text(json.dumps(evaluation(run={"step": step}, sets=[one_set("held-out")])))
    found = headline(collect(run))
    assert (found.accuracy, found.interval, found.step) == (pytest.approx(0.9), None, 8)
    said = (
        f"one/metrics.json is of {of}, the last evaluation of metrics.jsonl of step 8: "
        "it is left out here, and so is eval_margins.jsonl."
    )
    shown = cli("report", "one")
    text = Path("one/report.html").read_text()
    assert said in " ".join(shown.stderr.split())
    assert said in text
    assert "held-out accuracy, evaluated at step 8; no interval without metrics.json; 60 pairs" in text
    assert "Evaluation: <bdi>" not in text
    (not_paired,) = paired_differences(collect(run), collect(other))
    assert not_paired.why_not.endswith(
        "one has no metrics.json of its last evaluation, without which eval_margins.jsonl is left out"
    )


def test_a_run_that_went_on_and_was_not_evaluated_since(here):
    run = write_run(here / "one")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines[:3] if "eval_" not in line))  # from step 3 on
    assert collect(run).metrics is None
    (run / "metrics.jsonl").unlink()
    assert collect(run).metrics is not None  # nothing says otherwise


def test_a_damaged_evaluation_costs_the_page_no_more_than_itself(cli, here):
    run = write_run(here / "one")
    for content in ("{", "", '{"kind": "another"}', "[" * 100_000):
        (run / "metrics.json").write_text(content)
        shown = cli("report", "one", "--overwrite")
        assert shown.code == 0
        assert "it is left out here, and so is eval_margins.jsonl." in " ".join(shown.stderr.split())
        assert "evaluated at step 8" in Path("one/report.html").read_text()
    refused = cli("report", "one/metrics.json")
    assert (refused.code, refused.stderr.splitlines()[0]) == (
        2,
        "error: one/metrics.json cannot be read: no JSON",
    )


def test_how_far_a_run_came_is_told_by_whatever_was_written_last(here):
    run = write_run(here / "one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "eval_accuracy": 0.5}\n')
    found = collect(run)
    assert (found.last_step, found.evaluated_at) == (11, 11)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "loss": 0.5}\n')
    assert (collect(run).last_step, collect(run).evaluated_at) == (12, 11)


def test_an_evaluation_without_a_number_is_not_replaced_by_an_earlier_one(here):
    run = write_run(here / "one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "eval_accuracy": null}\n')
    assert headline(collect(run)).accuracy is None


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"stopped_early": True}, ["It stopped early."]),
        (
            {
                "stopped_early": "stopped early at step 4 of 9: eval_accuracy has not risen for 2 evaluations",
                "best": {"step": 2, "value": 0.91234, "figure": "eval_accuracy"},
            },
            [
                "It stopped early at step 4 of 9: eval_accuracy has not risen for 2 evaluations.",
                "The best evaluation was that of step 2: eval_accuracy 0.9123.",
            ],
        ),
        ({"stopped_early": "enough"}, ["It stopped early: enough."]),
        ({"best": {"step": 2}}, ["The best evaluation was that of step 2: its figure -."]),
        ({"best": 4, "stopped_early": None}, []),
    ],
)
def test_how_a_run_stopped_and_which_evaluation_was_best(cli, here, result, said):
    run = write_run(here / "one", steps=0)
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"result": told["result"] | result}))
    assert how_it_stopped(collect(run)) == said
    shown = cli("report", "one")
    assert shown.code == 0
    for one in said:
        assert f"<p>{one}</p>" in (run / "report.html").read_text()
        assert f"A: {one}" in shown.stderr.replace("\n", " ")
