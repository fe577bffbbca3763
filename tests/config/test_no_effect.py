"""A setting that the user asks for and that changes nothing is named; a preset's own, or the default, is not."""

import pytest

from rmcli.config.no_effect import without_effect
from rmcli.config.resolve import resolve

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
