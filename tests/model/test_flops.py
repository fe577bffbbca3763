"""The meter: hand-computed cases, matmuls against torch's FlopCounterMode, attention against counted pairs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rmcli.model import batch, flops
from rmcli.model.attention.shared_prefix import ATTENTION_NAME
from rmcli.model.flops import FlopCounter
from rmcli.model.forward import hidden_at_scores
from rmcli.model.network import flop_counter, trim
from rmcli.records import TokenGroup
from support.exactness import tiny_network, uneven_groups
from support.networks import random_group


def counter_of(network: torch.nn.Module) -> FlopCounter:
    return flop_counter(network)


def group(prefix: int, *responses: int) -> TokenGroup:
    return random_group(np.random.default_rng(0), prefix, responses)


def test_a_case_by_hand():
    """One layer of 100 weights, 2 heads of 3 numbers, a prompt of 4 tokens and responses of 2 and 1."""
    counter = FlopCounter(100, 0, 0, (None,), 2, 3, 3, trimmed=False)
    allowed = 10 + (4 + 1) + (4 + 2) + (4 + 1)  # 4 tokens of the prompt see 1 + 2 + 3 + 4
    assert counter.of_groups([group(4, 2, 1)]) == 6 * 100 * 7 + 12 * 2 * 3 * allowed
    alone = 6 * 100 * (6 + 5) + 12 * 2 * 3 * (21 + 15)
    assert counter.of_groups([group(4, 2, 1)], shared=False) == alone


def test_a_sliding_window_by_hand():
    """A window of 3: tokens see 1, 2, 3, 3 (the prompt), 3 and 3 (a response)."""
    counter = FlopCounter(0, 0, 0, (3,), 1, 1, 1, trimmed=False)
    assert counter.of_groups([group(4, 2)]) == 12 * (1 + 2 + 3 + 3 + 3 + 3)


def test_a_trimmed_last_layer_by_hand():
    """Two layers of 100 weights, 30 of them for keys and values: the last runs on 2 of 7 tokens."""
    counter = FlopCounter(200, 100, 30, (None, None), 1, 1, 1, trimmed=True)
    allowed = 26 + (6 + 5)
    assert counter.of_groups([group(4, 2, 1)]) == 6 * (100 * 7 + 30 * 7 + 70 * 2) + 12 * allowed


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "phi3", "mixtral", "aria_text"])
def test_matmuls_are_those_that_torch_counts(name):
    """torch counts attention on CPU as nothing, so what it counts is 6 N T."""
    network, groups = tiny_network(name), uneven_groups()
    network.set_attn_implementation(ATTENTION_NAME)
    network.config._experts_implementation = "eager"  # torch does not count a grouped matmul
    packed = batch.build_packed(groups)
    with FlopCounterMode(display=False) as torchs:
        hidden_at_scores(network, packed).sum().backward()
    counter = counter_of(network)
    without_attention = FlopCounter(**{**counter.__dict__, "num_heads": 0})
    assert torchs.get_total_flops() == without_attention.of_groups(groups)


def test_matmuls_of_a_trimmed_last_layer_are_those_that_torch_counts_but_for_unused_queries():
    network, groups = tiny_network("llama"), uneven_groups()
    network.set_attn_implementation(ATTENTION_NAME)
    trim(network)
    packed = batch.build_packed(groups)
    with FlopCounterMode(display=False) as torchs:
        hidden_at_scores(network, packed).sum().backward()
    counter = counter_of(network)
    assert counter.trimmed
    without_attention = FlopCounter(**{**counter.__dict__, "num_heads": 0})
    # On its way to the keys the layer computes every token's query, and with the scores' queries their keys once
    # more; nothing comes of either, so they are no model FLOPs.
    unused = 2 * network.model.layers[-1].self_attn.q_proj.weight.numel() * packed.num_tokens
    unused += 2 * counter.key_value_weights * len(packed.score_index)
    assert torchs.get_total_flops() == without_attention.of_groups(groups) + unused


@pytest.mark.parametrize(
    ("name", "trimmed"), [("llama", False), ("llama", True), ("mistral", False), ("mistral", True)]
)
def test_attention_is_that_of_the_pairs_that_a_mask_allows(name, trimmed):
    network, groups = tiny_network(name), uneven_groups()
    network.set_attn_implementation(ATTENTION_NAME)
    if trimmed:
        trim(network)
    counter = counter_of(network)
    heads, size = network.config.num_attention_heads, network.config.head_dim
    window = network.config.sliding_window if name == "mistral" else None
    allowed = 0
    for layer in range(3):
        for one in groups:
            prefix, seen = len(one.prefix), 0
            for number, response in enumerate(one.responses):
                for query in range(prefix + len(response)):
                    first = 0 if window is None else max(0, query - window + 1)
                    at_end = query == prefix + len(response) - 1
                    if trimmed and layer == 2 and not at_end:
                        continue
                    if (trimmed and layer == 2) or query >= prefix or number == 0:
                        seen += query + 1 - first
            allowed += seen
    no_weights = FlopCounter(**{**counter.__dict__, "weights": 0, "last_weights": 0, "key_value_weights": 0})
    assert no_weights.of_groups(groups) == 12 * heads * size * allowed


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12),
     ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L40S", 362e12), ("Some new card", None)],
)  # fmt: skip
def test_the_peak_of_a_device(name, peak):
    assert flops.peak_flops(name) == peak
