"""Every architecture: packed + shared against plain transformers on single conversations, or one per forward."""

import copy
import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, Phi3Config

from rmcli.backbones import architectures
from rmcli.errors import RmcliError
from rmcli.model import batch, forward
from rmcli.model.attention.layout import PackedLayout
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.backend import stock_attention
from rmcli.model.forward import hidden_at_scores
from rmcli.model.network import is_trimmed, trim
from rmcli.model.self_test import expect, settle_batches
from support.exactness import backbone_scores, gradients, largest_relative, one_key_more, tiny_network, uneven_groups
from support.networks import NoWaiting, single_batches
from support.places import REPOSITORY
from support.tiny_backbones import FELT, PACKED, SINGLE, tiny_config


@pytest.mark.parametrize("name", sorted(PACKED))
def test_packed_and_shared_equals_single_conversations(name):
    network, groups = tiny_network(name), uneven_groups()
    assert architectures.choose_batches(True, network.config, 64) == architectures.BatchChoice("packed")
    expected = backbone_scores(network, groups)
    expected_gradients = gradients(network, expected)
    network.set_attn_implementation(ATTENTION_NAME)
    actual = forward.scores(network, batch.build_packed(groups))
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


@pytest.mark.parametrize("name", sorted(set(PACKED) - architectures.WHOLE_LAST_LAYER))
def test_a_last_layer_at_the_reward_positions_only_changes_nothing(name):
    network, packed = tiny_network(name), batch.build_packed(uneven_groups())
    network.set_attn_implementation(ATTENTION_NAME)
    expected = forward.scores(network, packed)
    expected_gradients = gradients(network, expected)
    trim(network)
    widths = []
    network.base_model.register_forward_hook(lambda _module, _args, result: widths.append(result[0].shape[1]))
    actual = forward.scores(network, packed)
    assert widths == [len(expected)]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


def test_a_copy_of_a_trimmed_network_runs_its_own_last_layer():
    network, packed = tiny_network("llama"), batch.build_packed(uneven_groups())
    network.set_attn_implementation(ATTENTION_NAME)
    trim(network)
    twin = copy.deepcopy(network)
    expected = forward.scores(network, packed)
    assert expected.std() > 0.1
    with torch.no_grad():
        for parameter in network.base_model.layers[-1].parameters():
            parameter.fill_(0.5)
    assert is_trimmed(twin)
    torch.testing.assert_close(forward.scores(twin, packed), expected, atol=0, rtol=0)
    assert (forward.scores(network, packed) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(architectures.WHOLE_LAST_LAYER))
def test_these_need_the_whole_last_layer(name):
    network, packed = tiny_network(name), batch.build_packed(uneven_groups())
    network.set_attn_implementation(ATTENTION_NAME)
    expected = forward.scores(network, packed)
    try:
        trim(network)
        actual = forward.scores(network, packed)
    except (RuntimeError, RmcliError):
        return
    assert (actual - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(set(PACKED) & {"llama", "mistral", "gemma2", "gpt_oss", "qwen3_moe"}))
def test_transformers_own_classifier_says_what_its_backbone_and_head_say(name):
    network, groups = tiny_network(name), uneven_groups()
    with torch.no_grad(), stock_attention(network, "eager"):
        logits = torch.cat([network(input_ids=one.input_ids).logits[:, 0] for one in single_batches(groups)])
        torch.testing.assert_close(backbone_scores(network, groups), logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_others_are_recognised_and_run_one_conversation_per_forward(name):
    network, groups = tiny_network(name), uneven_groups()
    choice = architectures.choose_batches(True, network.config, 64)
    assert choice.kind == "single"
    assert choice.reason
    expected = backbone_scores(network, groups, network.config._attn_implementation)
    expected_gradients = gradients(network, expected)
    actual = forward.scores(network, batch.build_single(groups))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "minimax", "phimoe"])
def test_packing_those_would_be_wrong(name):
    """The negative control: what choose_batches keeps from them."""
    network, groups = tiny_network(name), uneven_groups()
    with torch.no_grad():
        expected = backbone_scores(network, groups, network.config._attn_implementation)
        network.set_attn_implementation(ATTENTION_NAME)
        actual = forward.scores(network, batch.build_packed(groups))
    assert (actual - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(FELT))
def test_windows_soft_caps_and_sinks_are_felt(name):
    what, changes = FELT[name]
    network, groups = tiny_network(name), uneven_groups()
    with torch.no_grad():
        expected = backbone_scores(network, groups)
        assert (expected - backbone_scores(tiny_network(name, **changes), groups)).abs().max() > 1e-3
        if "sinks" in what:
            for parameter_name, parameter in network.named_parameters():
                if parameter_name.endswith("sinks"):
                    torch.nn.init.constant_(parameter, -1e4)
            assert (expected - backbone_scores(network, groups)).abs().max() > 1e-3


def test_the_proven_architectures_are_those_that_the_test_runs():
    assert sorted(PACKED) == sorted(architectures.PROVEN)


# --- rope whose frequencies depend on the length ---


def rope_config(kind: str) -> LlamaConfig:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "num_labels": 1,
    }
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        return LlamaConfig(**sizes, max_position_embeddings=24, rope_parameters=rope)
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.0, 4.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24, **factors}
    return Phi3Config(**sizes, max_position_embeddings=96, original_max_position_embeddings=24, rope_parameters=rope)


def rope_network(kind: str) -> torch.nn.Module:
    register()
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(rope_config(kind), dtype=torch.float32).eval()
    torch.nn.init.normal_(network.score.weight, std=0.3)
    return network


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_conversations_below_the_switch_length_are_packed_exactly(kind):
    groups = [group for group in uneven_groups() if len(group.prefix) + max(map(len, group.responses)) <= 24]
    assert len(groups) == 5
    network = rope_network(kind)
    assert architectures.choose_batches(True, network.config, 24).kind == "packed"
    expected = backbone_scores(network, groups)
    network.set_attn_implementation(ATTENTION_NAME)
    torch.testing.assert_close(forward.scores(network, batch.build_packed(groups)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", ["packed", "padded"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_below_the_switch_length_no_forward_asks_for_the_longest_position(kind, rows):
    groups = [group for group in uneven_groups() if len(group.prefix) + max(map(len, group.responses)) <= 24]
    network = rope_network(kind)
    expected = backbone_scores(network, groups)
    network.set_attn_implementation(ATTENTION_NAME if rows == "packed" else "eager")
    packed = batch.build_batch(rows, groups, 0)
    with torch.no_grad(), pytest.raises(AssertionError) if kind == "dynamic" else nullcontext(), NoWaiting():
        hidden_at_scores(network, packed)
    settle_batches(network, architectures.BatchChoice(rows), "float32")
    with torch.no_grad(), NoWaiting():
        scores = forward.scores(network, packed)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_longer_ones_run_alone_and_never_feel_what_ran_before(kind):
    choice = architectures.choose_batches(True, rope_config(kind), 25)
    assert choice.kind == "single"
    assert "its rope changes at 24 tokens and data.max_length is 25" in choice.reason
    assert (
        architectures.choose_batches(False, rope_config(kind), 25).kind == "single"
    )  # padded rows have neighbours too
    groups = uneven_groups()  # one of them has 28 tokens
    fresh = torch.cat([backbone_scores(rope_network(kind), [group]) for group in groups])
    network = rope_network(kind)
    with torch.no_grad():
        torch.testing.assert_close(forward.scores(network, batch.build_single(groups)), fresh, atol=1e-5, rtol=0)
        again = forward.scores(network, batch.build_single([groups[4], *groups]))[2:]
        torch.testing.assert_close(again, fresh, atol=1e-5, rtol=0)
        network.set_attn_implementation(ATTENTION_NAME)
        packed = forward.scores(network, batch.build_packed(groups))
    assert (packed - fresh).abs().max() > 1e-3  # the long conversation would move its neighbours


# --- architectures that nobody has proven: the self-test decides ---


def test_an_unknown_architecture_that_fails_falls_back_and_says_so(monkeypatch, capsys):
    network = tiny_network("lfm2")
    network.set_attn_implementation(ATTENTION_NAME)
    choice = settle_batches(network, architectures.BatchChoice("packed"), "float32")
    assert choice.kind == "single"
    assert network.config._attn_implementation == "sdpa"
    said = capsys.readouterr().err
    assert "FAILED" in said
    assert "note: one conversation per forward, no shared prompts (slower): packed rows are not exact here" in said


def test_an_unknown_architecture_that_passes_is_packed(monkeypatch, capsys):
    monkeypatch.setattr(architectures, "PROVEN", frozenset())
    network = tiny_network("llama")
    network.set_attn_implementation(ATTENTION_NAME)
    assert settle_batches(network, architectures.BatchChoice("packed"), "float32").kind == "packed"
    assert " ok\n" in capsys.readouterr().err


def test_an_architecture_whose_attention_gets_a_mask_falls_back(capsys):
    network = tiny_network("stablelm")
    network.set_attn_implementation(ATTENTION_NAME)
    monkey = architectures.BatchChoice("packed")  # had it claimed to take any attention
    assert settle_batches(network, monkey, "float32").kind == "single"
    assert "called without a layout or with a mask" in capsys.readouterr().err


def test_a_proven_architecture_that_fails_is_a_fault(monkeypatch):
    network = tiny_network("llama")
    network.set_attn_implementation(ATTENTION_NAME)
    full = lambda self, q, k, window, device: torch.ones(q, k, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(PackedLayout, "mask", full)
    with pytest.raises(RmcliError, match="self-test failed: scores of packed rows are"):
        settle_batches(network, architectures.BatchChoice("packed"), "float32")


def test_what_rounding_hides_in_bfloat16_is_found_in_float32(monkeypatch):
    """One key more moves nanochat by less than bfloat16 does."""
    network = tiny_network("nanochat")
    network.set_attn_implementation(ATTENTION_NAME)
    monkeypatch.setattr(PackedLayout, "mask", one_key_more)
    with pytest.raises(RmcliError, match=r"self-test failed: scores of packed rows are .*\(limit 1e-04\)$"):
        settle_batches(network, architectures.BatchChoice("packed"), "bfloat16")


@pytest.mark.parametrize("name", ["cohere2_moe", "deepseek_v2", "gpt_oss", "mellum"])
def test_mixtures_of_experts_pass_with_bfloat16_weights(name):
    """A token that rounding sends to another expert makes one probe fail, not three."""
    network, packed = tiny_network(name), architectures.BatchChoice("packed")
    network.set_attn_implementation(ATTENTION_NAME)
    expected = expect(network, packed, "bfloat16")
    for parameter in network.base_model.parameters():
        parameter.data = parameter.data.bfloat16()
    assert settle_batches(network, packed, "bfloat16", expected=expected) == packed


# --- classifiers that transformers does not have ---


def test_granite_becomes_a_classifier_that_is_saved_and_loaded_alike(tmp_path):
    network, groups = tiny_network("granite"), uneven_groups()
    assert type(network).__name__ == "GraniteForSequenceClassification"
    assert architectures.loads_only_here(network.config)
    assert not architectures.loads_only_here(tiny_config("llama"))
    network.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(backbone_scores(again, groups), backbone_scores(network, groups))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "granite",
            "note: transformers has no GraniteForSequenceClassification: the model folder will load in rmcli",
        ),
        ("qwen3_next", "note: one conversation per forward, no shared prompts (slower): its layers of type linear"),
    ],
)
def test_such_backbones_go_through_the_commands(cli, tmp_path, name, said):
    folder = tmp_path / "backbone"
    tiny_config(name, vocab_size=384, max_position_embeddings=256).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "presets" / "tiny" / file, folder)
    backbone = ("--preset", "tiny", "-s", f"model.pretrained_model_name_or_path={folder}")
    assert cli("prepare", "tasks:300", *backbone, "-o", "data", "-s", "data.eval_fraction=0.2").code == 0
    short = ("-s", "train.max_steps=3", "-s", "train.pairs_per_step=4")
    result = cli("train", *backbone, "--data", "data", "-o", "run", *short, "--json")
    assert result.code == 0, result.stderr
    assert said in result.stderr
    scored = cli("score", "run/model", "data/eval.jsonl", "-o", "scores.jsonl", "--json")
    assert scored.code == 0, scored.stderr
    summary = json.loads(result.stdout)
    assert json.loads(scored.stdout)["accuracy"] == pytest.approx(summary["eval_accuracy"], abs=1e-9)
    assert json.loads(scored.stdout)["margin"] == pytest.approx(summary["eval_margin"], abs=1e-5)
