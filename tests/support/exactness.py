"""Uneven groups, gradients, and how far two of them are apart."""

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from rmcli.backbones import architectures
from rmcli.model.attention.shared_prefix import register
from rmcli.model.backend import stock_attention
from rmcli.model.network import score_head
from rmcli.records import TokenGroup
from support.networks import random_group, single_batches
from support.tiny_backbones import tiny_config

SHAPES = [(9, (5, 3)), (1, (7, 11)), (14, (2, 2)), (0, (4, 6)), (20, (8, 8)), (5, (3, 1, 6))]


def uneven_groups(seed: int = 0) -> list[TokenGroup]:
    generator = np.random.default_rng(seed)
    return [random_group(generator, prefix, responses) for prefix, responses in SHAPES]


def gradients(network: torch.nn.Module, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a fixed uneven combination of the scores, for each parameter."""
    network.zero_grad()
    weights = torch.linspace(-1, 2, len(scores), dtype=scores.dtype)
    (scores * weights).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def largest_relative(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of the gradients of all parameters; one that is all but zero is held against the largest."""
    assert actual.keys() == expected.keys()
    # max() passes over a NaN that is not its first item.
    assert all(torch.isfinite(gradient).all() for found in (actual, expected) for gradient in found.values())
    rounding = 1e-4 * max(float(gradient.norm()) for gradient in expected.values())
    return max(
        float((actual[name] - expected[name]).norm()) / max(float(expected[name].norm()), rounding)
        for name in expected
    )


def one_key_more(self, q, k, window, device):
    return torch.ones(q, k, dtype=torch.bool).tril(k - q + 1)


def tiny_network(name: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A random reward model of that architecture with a seeded non-zero head."""
    register()
    config = tiny_config(name, **changes)
    architectures.ensure_classifier(config)
    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    torch.nn.init.normal_(score_head(network).weight, std=0.3)
    for parameter_name, parameter in network.named_parameters():
        if parameter_name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=1.0)
    return network


def backbone_scores(network: torch.nn.Module, groups: list, stock: str = "eager") -> torch.Tensor:
    """The plain backbone and a linear head, one conversation at a time."""
    weight = score_head(network).weight[0]
    with stock_attention(network, stock):
        hidden = [
            network.base_model(input_ids=one.input_ids, use_cache=False).last_hidden_state[0, -1]
            for one in single_batches(groups)
        ]
    return torch.stack(hidden) @ weight


def packs() -> list[list[TokenGroup]]:
    """Rows of 3 to 6 groups, with pairs and with three responses."""
    generator = np.random.default_rng(3)
    groups = uneven_groups()
    others = [
        random_group(generator, prefix, lengths) for prefix, lengths in [(12, (3, 9)), (2, (2, 2)), (20, (5, 6))]
    ]
    return [groups, groups[::-1], others, [*others, *groups[:2]]]
