"""A setting that the user asks for and that changes nothing is named; a preset's own, or the default, is not."""

import json

import pytest

from rmcli.config.no_effect import without_effect
from rmcli.config.resolve import resolve
from support.cli import as_options, run_cli
from support.places import write_lines

ALL = ("model", "data", "loss", "train")


def said(*settings: str) -> list[str]:
    return list(without_effect(resolve("tiny", settings=settings), *ALL))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("loss.gamma=3", "loss.loss_type=ranking"),
            "loss.gamma = 3.0 (--set loss.gamma) has no effect: only loss.loss_type = focal reads it",
        ),
        (("loss.margin_scale=2",), "loss.margin_scale = 2.0 (--set loss.margin_scale) has no effect: only"),
        (("loss.tie_threshold=0.5",), "loss.loss_type = ties reads it"),
        (("loss.penalty_bound=4", "loss.penalty_type=L2"), "only loss.penalty_type = log_barrier reads it"),
        (("loss.penalty_bound=4", "loss.penalty_weight=0"), "loss.penalty_weight is 0"),
        (("loss.penalty_weight=0.5", "loss.penalty_type=none"), "loss.penalty_type is none"),
        (("loss.penalty_type=L2", "loss.penalty_weight=0"), "loss.penalty_type = 'L2'"),
        (("model.revision=main",), "model.revision = 'main' (--set model.revision) has no effect: {presets}/tiny is"),
        (("model.trim_last_layer=false", "model.use_varlen_attn=false"), "model.use_varlen_attn is false"),
        (("train.accumulative_counts=4", "train.pairs_per_step=8"), "train.pairs_per_step = 8 sets how large a step"),
        (("train.batch_size=4", "train.pairs_per_step=8"), "train.batch_size = 4"),
        (("data.eval_seed=1", "data.eval_fraction=0"), "data.eval_fraction is 0"),
    ],
)
def test_what_changes_nothing_is_said_with_its_reason(settings, sentence):
    (one,) = (line for line in said(*settings) if sentence in line)
    assert "has no effect: " in one


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("loss.gamma=3", "loss.loss_type=focal"),
        ("loss.margin_scale=2", "loss.loss_type=margin"),
        ("loss.penalty_bound=4",),
        ("loss.gamma=2.0", "loss.loss_type=ranking"),  # the default
        ("train.accumulative_counts=4",),  # the preset's pairs_per_step gives way
        ("train.batch_size=4", "train.pairs_per_step=8", "model.use_varlen_attn=false"),
        ("model.pretrained_model_name_or_path=org/name", "model.revision=main"),
    ],
)
def test_what_has_an_effect_is_not_spoken_of(settings):
    assert said(*settings) == []


def test_a_runs_own_resolved_toml_names_every_key_and_none_is_spoken_of(tmp_path):
    written = tmp_path / "resolved.toml"
    written.write_text(resolve("tiny", settings=["loss.loss_type=ranking", "loss.penalty_type=none"]).toml())
    again = resolve(None, [written])
    assert "loss.gamma" in again.explicit
    assert list(without_effect(again, *ALL)) == []


def test_train_and_prepare_say_it(cli, tiny_run):
    trained = cli("train", "-p", "tiny", "--data", tiny_run.data, "-n", "-s", "loss.margin_scale=2")
    assert trained.stderr.count("note: loss.margin_scale = 2.0 (--set loss.margin_scale) has no effect") == 1
    prepared = cli("prepare", "tasks:20", "-p", "tiny", "-n", "-s", "data.split=test")
    assert (
        "note: data.split = 'test' (--set data.split) has no effect: single files have no splits" in prepared.stderr
    )
    assert "has no effect" not in cli("prepare", "tasks:20", "-p", "tiny", "-n").stderr


# --- what changes nothing with the data at hand ---


@pytest.fixture(scope="module")
def nothing_held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "data"
    result = run_cli("prepare", "tasks:60", "-p", "tiny", "-o", folder, "-s", "data.eval_fraction=0", "--no-audit")
    assert result.code == 0, result.stderr
    return folder


def test_evaluations_of_nothing_are_named(cli, nothing_held_out):
    arguments = ("train", "-p", "tiny", "--data", nothing_held_out, "-n", "-q")
    assert "has no effect" not in cli(*arguments).stderr
    result = cli(*arguments, "-s", "train.eval_steps=2")
    assert result.code == 0
    assert result.stderr == (
        "note: train.eval_steps = 2 (--set train.eval_steps) has no effect: no pair is held out that this loss can "
        "be told on (data.eval_fraction)\n"
    )


def test_a_run_of_fewer_steps_than_a_setting_counts_is_named(cli, tiny_run):
    arguments = ("train", "-p", "tiny", "--data", tiny_run.data, "-q")
    steps = json.loads(cli(*arguments, "-n", "--json").stdout)["plan"]["steps"]
    assert steps > 20
    long = (f"train.max_steps={steps + 1}", f"train.eval_steps={steps}")
    result = cli(*arguments, "-n", *as_options(*long))
    assert [line.partition(" has no effect: ")[2] for line in result.stderr.splitlines()] == [
        f"train.max_epochs = 5 gives {steps:,} steps",
        f"the run has {steps:,} steps, and is evaluated at its end in any case",
    ]
    short = (f"train.max_steps={steps}", f"train.eval_steps={steps - 1}")
    result = cli(*arguments, "-n", *as_options(*short))
    assert result.stderr == ""


def test_prepare_names_what_its_rows_leave_without_effect(cli, tmp_path):
    arguments = ("prepare", "tasks:5", "-p", "tiny", "-o", "out", "--no-audit", "--overwrite", "-q")
    result = cli(*arguments, "--pairs", "adjacent", "-s", "data.eval_fraction=0.0001")
    assert result.code == 0, result.stderr
    assert result.stderr.splitlines() == [
        "note: data.pairs = 'adjacent' (command line) has no effect: no group has more than two answers",
        "note: data.eval_fraction = 0.0001 (--set data.eval_fraction) has no effect: none of 5 rows is held out: "
        "they are too few",
    ]
    rows = [{"prompt": f"q {n}", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]} for n in range(9)]
    write_lines(tmp_path / "rows.jsonl", rows)
    arguments = ("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "lists", "--no-audit", "-q")
    result = cli(*arguments, "--pairs", "adjacent", "-s", "data.eval_fraction=0.5")
    assert (result.code, result.stderr) == (0, "")
