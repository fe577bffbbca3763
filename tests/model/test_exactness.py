"""Packed rows with shared prompts against plain transformers on one conversation at a time."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from rmcli.backbones.architectures import BatchChoice
from rmcli.errors import RmcliError
from rmcli.model import batch, forward, self_test
from rmcli.model.attention.layout import PackedLayout, Segment
from rmcli.model.backend import stock_attention
from rmcli.model.forward import hidden_at_scores
from rmcli.model.network import trim
from rmcli.model.recompute import checkpoint_activations
from rmcli.model.self_test import Probe
from rmcli.records import TokenGroup
from support.exactness import SHAPES, gradients, largest_relative, one_key_more, uneven_groups
from support.networks import CONFIGS, random_group, single_batches, tiny_model

MODELS = sorted(CONFIGS)


def plain_scores(network: torch.nn.Module, groups: list[TokenGroup], stock: str = "eager") -> torch.Tensor:
    """What transformers' own forward of the classifier says, one conversation at a time."""
    with stock_attention(network, stock):
        return torch.cat([network(input_ids=one.input_ids).logits.squeeze(-1) for one in single_batches(groups)])


@pytest.mark.parametrize("name", MODELS)
def test_packed_and_shared_equals_plain_single_conversations(name):
    network, groups = tiny_model(name), uneven_groups()
    expected = plain_scores(network, groups)
    expected_gradients = gradients(network, expected)
    actual = forward.scores(network, batch.build_packed(groups))
    assert expected.std() > 0.1  # scores that differ, or nothing is shown
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_padded_equals_plain_single_conversations(name):
    network, groups = tiny_model(name), uneven_groups()
    expected = plain_scores(network, groups)
    expected_gradients = gradients(network, expected)
    network.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
    actual = forward.scores(network, batch.build_padded(groups, pad_token_id=0))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_one_key_too_many_is_noticed(name, monkeypatch):
    network, groups = tiny_model(name), uneven_groups()
    expected = plain_scores(network, groups)
    monkeypatch.setattr(
        PackedLayout,
        "mask",
        lambda self, q, k, window, device: torch.ones(q, k, dtype=torch.bool).tril(k - q + 1),
    )
    actual = forward.scores(network, batch.build_packed(groups))
    assert (actual - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "change"),
    [("gemma2", {"attn_logit_softcapping": 50.0}), ("gemma2", {"layer_types": ["full_attention"] * 3})],
)
def test_the_tiny_configs_feel_what_they_test(name, change):
    groups = uneven_groups()
    with torch.no_grad():
        scores = forward.scores(tiny_model(name), batch.build_packed(groups))
        changed = forward.scores(tiny_model(name, **change), batch.build_packed(groups))
    assert (scores - changed).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_changing_one_pair_never_moves_another(name):
    network, generator = tiny_model(name), np.random.default_rng(1)
    groups = uneven_groups()
    same_shape = [*groups[:2], random_group(generator, *SHAPES[2]), *groups[3:]]
    longer = [*groups[:2], random_group(generator, 31, (4, 9)), *groups[3:]]
    others = torch.tensor([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12])
    with torch.no_grad():
        before, same, other = (
            forward.scores(network, batch.build_packed(packed)) for packed in (groups, same_shape, longer)
        )
    assert torch.equal(before[others], same[others])
    assert not torch.equal(before[4:6], same[4:6])
    torch.testing.assert_close(before[others], other[others], atol=1e-6, rtol=0)


def test_float64_models_score_in_float64():
    network, groups = tiny_model("llama", dtype=torch.float64), uneven_groups()
    with torch.no_grad():
        # sdpa: transformers' eager attention takes its softmax in float32 whatever the model is
        actual, expected = forward.scores(network, batch.build_packed(groups)), plain_scores(network, groups, "sdpa")
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, atol=1e-13, rtol=0)


def test_bfloat16_computes_the_backbone_in_bfloat16_and_the_head_in_float32():
    network, packed = tiny_model("llama"), batch.build_packed(uneven_groups())
    with torch.no_grad():
        full, reduced = forward.scores(network, packed, "float32"), forward.scores(network, packed, "bfloat16")
        hidden = hidden_at_scores(network, packed, "bfloat16")
    assert reduced.dtype == torch.float32
    assert 1e-4 < (reduced - full).abs().max() < 0.2
    torch.testing.assert_close(reduced, hidden.float() @ network.score.weight[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient(kind, trimmed):
    network, groups = tiny_model("llama"), uneven_groups()
    if trimmed:
        trim(network)
    expected = gradients(network, forward.scores(network, batch.build_packed(groups)))
    network.train()
    checkpoint_activations(network, kind)
    calls = []
    network.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    actual = gradients(network, forward.scores(network, batch.build_packed(groups)))
    assert len(calls) == 2  # once forward, once again for the backward
    assert largest_relative(actual, expected) < 1e-6


def test_what_activation_checkpointing_keeps_and_computes_again():
    """Bytes still held after the forward, and matmuls of a step: selective computes none of them again."""
    held, matmuls = {}, {}
    for kind in ("none", "selective", "full"):
        network, packed = tiny_model("llama").train(), batch.build_packed(uneven_groups())
        if kind != "none":
            checkpoint_activations(network, kind)
        forward.scores(network, packed)  # what the first call alone allocates
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            scores = forward.scores(network, packed)
        held[kind] = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
        with FlopCounterMode(display=False) as counter:
            forward.scores(network, packed).sum().backward()
        matmuls[kind] = counter.get_total_flops()
        del scores
    print(held)
    assert held["full"] < 0.5 * held["selective"] < 0.5 * 0.8 * held["none"]
    assert matmuls["selective"] == matmuls["none"] < matmuls["full"]


def test_a_packed_batch_is_refused_under_a_stock_attention():
    network = tiny_model("llama")
    network.set_attn_implementation("sdpa")
    with pytest.raises(RmcliError, match="attention sdpa cannot run a PackedBatch"):
        forward.scores(network, batch.build_packed(uneven_groups()))


def test_the_self_test_passes_and_finds_a_broken_attention(monkeypatch):
    network, groups = tiny_model("qwen3"), uneven_groups()
    torch.nn.init.zeros_(network.score.weight)  # a new model's head
    packed, alone = batch.build_packed(groups), single_batches(groups)
    positions, start = [], 0
    for group in groups:
        response_start = start + len(group.prefix)
        for response in group.responses:
            positions.append(
                [*range(start, start + len(group.prefix)), *range(response_start, response_start + len(response))]
            )
            response_start += len(response)
        start = response_start
    probe = Probe(packed, alone, positions)
    expected = probe.run_alone(network, "float32")
    assert max(probe.run_packed(network, "float32").distances(expected)) < 1e-5
    monkeypatch.setattr(PackedLayout, "mask", lambda self, q, k, window, device: torch.ones(q, k, dtype=torch.bool))
    assert min(probe.run_packed(network, "float32").distances(expected)) > 1e-2


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [3, 30])
def test_the_self_test_in_bfloat16_passes_deep_models_and_finds_one_key_more(layers, weights, monkeypatch, capsys):
    """The deeper, the further single conversations are from float32: packed rows are held to those."""
    network = tiny_model("llama", num_hidden_layers=layers)
    packed = BatchChoice("packed")
    expected = self_test.expect(network, packed, "bfloat16")
    if weights == "bfloat16":
        for parameter in network.model.parameters():
            parameter.data = parameter.data.bfloat16()
    assert self_test.settle_batches(network, packed, "bfloat16", expected=expected) == packed
    exact, reduced = capsys.readouterr().err.splitlines()
    assert exact.startswith("self-test: ")
    assert exact.endswith("(limit 1e-04) ok")
    assert reduced.startswith("self-test in bfloat16: ")
    assert reduced.endswith(" ok")
    monkeypatch.setattr(PackedLayout, "mask", one_key_more)  # a kernel that is wrong in bfloat16 alone
    with pytest.raises(RmcliError, match=r"self-test failed: .* in bfloat16"):
        self_test.settle_batches(network, packed, "bfloat16", expected=expected)


def test_a_probe_that_fails_by_chance_in_bfloat16_is_drawn_again(monkeypatch, capsys):
    outcomes = iter([(0.3, 0.3), (0.01, 0.01)] + [(0.3, 0.3)] * 3)
    monkeypatch.setattr(self_test, "compare_reduced", lambda *_: self_test.SelfTest(*next(outcomes), 0.02, 0.03))
    network = tiny_model("llama")
    assert self_test.settle_batches(network, BatchChoice("packed"), "bfloat16").kind == "packed"
    _, first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("score 3.0e-01, gradient 3.0e-01 (limits 2.0e-02, 3.0e-02) FAILED")
    assert second.endswith("score 1.0e-02, gradient 1.0e-02 (limits 2.0e-02, 3.0e-02) ok")
    with pytest.raises(RmcliError, match=r"self-test failed: scores of packed rows are 3\.0e-01 apart"):
        self_test.settle_batches(network, BatchChoice("packed"), "bfloat16")


def test_the_layout_of_two_groups_by_hand():
    groups = [
        TokenGroup(np.array([1, 2], np.int32), (np.array([3], np.int32), np.array([4, 5], np.int32))),
        TokenGroup(np.array([6], np.int32), (np.array([7, 8], np.int32), np.array([9], np.int32))),
    ]
    packed = batch.build_packed(groups)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2, 1]]
    assert packed.score_index.tolist() == [2, 4, 7, 8]
    assert packed.layout.segments == (
        Segment(0, 3, 0, 0),
        Segment(3, 2, 0, 2),
        Segment(5, 3, 5, 0),
        Segment(8, 1, 5, 1),
    )
    assert packed.layout.kv_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 5, 8]
    assert packed.layout.cu_seq_q.tolist() == [0, 3, 5, 8, 9]
    assert packed.layout.cu_seq_k.tolist() == [0, 3, 7, 10, 12]
    assert (packed.layout.max_q, packed.layout.max_k) == (3, 4)
