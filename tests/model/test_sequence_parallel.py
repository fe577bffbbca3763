"""Rows that several processes share against whole rows on one: scores, and gradients summed over all processes."""

import pytest
from transformers import CONFIG_MAPPING, PreTrainedConfig

import sequence_parallel
from rmcli.backbones.architectures import BatchChoice
from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError
from rmcli.model.sequence_parallel import check_sequence_parallel
from support.ranks import on_ranks
from support.sequence import (
    Case,
    distances_of_the_self_test,
    errors,
    errors_of_all_layers,
    exchanges,
    fall_back,
    scored_without_waiting,
)
from support.tiny_backbones import PACKED, tiny_config


def check(number: int, case: Case, scores: float = 1e-5, gradients: float = 1e-4) -> None:
    for score_error, gradient_error in on_ranks(number, errors, case):
        assert score_error < scores, case
        assert gradient_error < gradients, case


HERE = sorted(PACKED.keys() & set(CONFIG_MAPPING))  # an older transformers has not all
NINE_HEADS = (("num_attention_heads", 9), ("num_key_value_heads", 3), ("hidden_size", 72))
ONE_KEY_HEAD = (("num_attention_heads", 8), ("num_key_value_heads", 1))
BEHIND_A_PROMPT = ((40, (2, 3)),)  # both scores in the last share; the prompt cut by every border
CASES = {
    "sinks and windows": (4, Case("gpt_oss")),
    "soft-capping": (2, Case("gemma2")),
    "complex rotations, values of another size": (4, Case("deepseek_v2")),
    "a view of the result": (2, Case("jetmoe", trimmed=False)),
    "9 heads of 3": (2, Case(changes=NINE_HEADS)),
    "one head of keys": (4, Case(changes=ONE_KEY_HEAD)),
    "no reward position": (4, Case(shapes=BEHIND_A_PROMPT)),
    "no reward position, the whole last layer": (4, Case(shapes=BEHIND_A_PROMPT, trimmed=False)),
    "responses cut": (2, Case(shapes=((3, (17, 24)),))),
    "a length that divides": (4, Case(shapes=((20, (10, 10)),))),
    "fewer tokens than processes": (4, Case(shapes=((1, (1, 1)),))),
    "selective recomputation": (2, Case(recompute="selective")),
    "selective recomputation, all layers": (4, Case(recompute="selective", trimmed=False)),
    "full recomputation": (4, Case(recompute="full", trimmed=False)),
}


@pytest.mark.parametrize(("number", "case"), CASES.values(), ids=CASES)
def test_a_shared_row_equals_a_whole_one(number, case):
    check(number, case)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("name", HERE)
def test_every_architecture_shares_its_rows(name, number):
    for of_kinds in on_ranks(number, errors_of_all_layers, name):
        for score_error, gradient_error in of_kinds:
            assert score_error < 1e-5
            assert gradient_error < 1e-4


# Layer norms, and groups of two beside each other. transformers computes root mean squares in float32 in any model.
IN_FLOAT64 = [
    (2, Case("starcoder2", dtype="float64", trimmed=False)),
    (4, Case("gpt_neox", dtype="float64")),
    (4, Case("starcoder2", dtype="float64", size=2)),
    (4, Case("starcoder2", dtype="float64", size=2, sharded=True)),
    (4, Case("starcoder2", dtype="float64", size=2, sharded=True, trimmed=False, recompute="selective")),
]


@pytest.mark.parametrize(("number", "case"), IN_FLOAT64)
def test_gradients_in_float64(number, case):
    check(number, case, 1e-12, 1e-12)


@pytest.mark.parametrize("trimmed", [True, False])
def test_in_bfloat16_the_same_but_for_rounding(trimmed):
    check(2, Case(arithmetic="bfloat16", trimmed=trimmed), 1e-2, 2e-2)


@pytest.mark.parametrize("fault", ["no share", "own gradient of a sum", "gradients not sent back"])
@pytest.mark.parametrize("trimmed", [True, False])
def test_a_missing_factor_and_a_wrong_adjoint_are_seen(trimmed, fault):
    for score_error, gradient_error in on_ranks(2, errors, Case(trimmed=trimmed, fault=fault)):
        assert score_error < 1e-5
        assert gradient_error > 0.4


@pytest.mark.parametrize("trimmed", [True, False])
def test_selective_recomputation_sends_nothing_twice(trimmed):
    (none, selective, full), other = on_ranks(2, exchanges, trimmed)
    assert other == [none, selective, full]
    assert none == selective < full


def test_the_host_never_waits_for_the_device():
    assert on_ranks(2, scored_without_waiting) == [True, True]


def test_the_self_test_takes_part_and_finds_a_wrong_adjoint():
    for right, wrong in on_ranks(2, distances_of_the_self_test):
        assert max(right) < 1e-5
        assert wrong[0] < 1e-5
        assert wrong[1] > 0.1


def test_an_unproven_backbone_that_fails_the_self_test_shares_no_rows():
    message = "no packed rows to share: packed rows are not exact here: scores of packed rows are "
    for said in on_ranks(2, fall_back):
        assert said.startswith(message)


@pytest.mark.slow
def test_half_the_memory_and_what_is_sent():
    """A pair of 8,192 tokens through 6 layers."""
    alone, shared = (sequence_parallel.measure(size) for size in (1, 2))
    assert shared["peak"] < 0.65 * alone["peak"]
    assert shared["swapped"] == sequence_parallel.swapped_by_formula(2)
    assert 0 < shared["added"] < 1e-3 * shared["swapped"]


# --- refused before weights are loaded ---


PACKED_ROWS = BatchChoice("packed")


def refusal(backbone: PreTrainedConfig, choice: BatchChoice = PACKED_ROWS, **train: str) -> str | None:
    config = resolve("tiny").config
    changes = {
        "parallel": config.parallel.model_copy(update={"sequence_parallel_size": 2}),
        "train": config.train.model_copy(update=train),
    }
    try:
        check_sequence_parallel(config.model_copy(update=changes), backbone, choice)
    except ConfigError as error:
        return f"{error.message}; {error.hint}"
    return None


@pytest.mark.parametrize("name", HERE)
def test_tiny_backbones_may_share(name):
    changes = {"residual_dropout": 0.0} if name == "seed_oss" else {}  # which is 0.1 by default
    assert refusal(tiny_config(name, **changes)) is None


def test_what_cannot_share_is_told_why():
    tiny = tiny_config("llama")
    assert refusal(tiny, BatchChoice("padded")) == (
        "parallel.sequence_parallel_size = 2 shares packed rows, and model.use_varlen_attn = false pads them; "
        "set model.use_varlen_attn=true"
    )
    assert refusal(tiny, BatchChoice("single", "its layers of type conv carry state")) == (
        "parallel.sequence_parallel_size = 2 shares packed rows, and this backbone runs one conversation at a time: "
        "its layers of type conv carry state; set parallel.sequence_parallel_size=1"
    )
    assert refusal(tiny, kernels="compile") == (
        "parallel.sequence_parallel_size = 2 is not proven with train.kernels = 'compile'; "
        "set train.kernels=torch, or parallel.sequence_parallel_size=1"
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "attention_dropout"),
        ("gpt2", "resid_pdrop"),
        ("gpt2", "embd_pdrop"),
        ("granite", "attention_dropout"),
        ("opt", "layerdrop"),
        ("mixtral", "router_jitter_noise"),
        ("persimmon", "hidden_dropout"),
        ("seed_oss", "residual_dropout"),
    ],
)
def test_what_is_drawn_in_training_is_refused(name, key):
    assert refusal(tiny_config(name, **{key: 0.1})) == (
        f"config.json has {key} = 0.1, and with parallel.sequence_parallel_size = 2 each process would draw its own; "
        f"set {key} to 0 there, or parallel.sequence_parallel_size=1"
    )


def test_dropout_of_a_head_that_is_not_run_is_none():
    assert refusal(tiny_config("gpt2", summary_first_dropout=0.1)) is None
    assert refusal(tiny_config("gpt_neox", classifier_dropout=0.1)) is None
