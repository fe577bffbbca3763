"""Losses and penalties against values computed by hand, and the weighting of pairs over packs."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import random_group, tiny_model

from rmcli import batch, model
from rmcli.config import LossSection
from rmcli.losses import LOSSES, PENALTIES, objective


def pair_loss(name: str, difference: float, gamma: float = 2.0) -> tuple[float, float]:
    """Loss and its derivative by the chosen score, in float64."""
    chosen = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](chosen, torch.zeros(1, dtype=torch.float64), gamma)
    loss.sum().backward()
    return float(loss.detach()), float(chosen.grad)


def penalty(name: str, score: float, bound: float = 5.0) -> tuple[float, float]:
    scores = torch.tensor([score], dtype=torch.float64, requires_grad=True)
    value = PENALTIES[name](scores, bound)
    value.sum().backward()
    return float(value.detach()), float(scores.grad)


@pytest.mark.parametrize(
    ("difference", "loss", "derivative"),
    [
        (0.0, 0.6931471805599453, -0.5),
        (1.0, 0.31326168751822286, -0.2689414213699951),
        (-1.0, 1.3132616875182228, -0.7310585786300049),
        (-40.0, 40.0, -1.0),
    ],
)
def test_ranking(difference, loss, derivative):
    assert pair_loss("ranking", difference) == pytest.approx((loss, derivative), rel=1e-12)


@pytest.mark.parametrize(
    ("difference", "gamma", "loss", "derivative"),
    [
        (0.0, 2.0, 0.6931471805599453, -0.5),  # at the tie: the ranking loss's gradient, not -1.193
        (-1e-9, 2.0, 0.6931471810599453, -0.5000000002),
        (1e-9, 2.0, 0.693147179366798, -1.1931471795),
        (-1.0, 2.0, 1.3132616875182228, -0.7310585786300049),
        # P = sigmoid(1) = 0.7310585786300049, 1 - 2 (P - 1/2) = 0.5378828427399902, squared, times 0.3132616875
        (1.0, 2.0, 0.09063223003386932, None),
        (1.0, 0.0, 0.31326168751822286, -0.2689414213699951),
    ],
)
def test_focal_at_and_on_both_sides_of_a_tie(difference, gamma, loss, derivative):
    actual, slope = pair_loss("focal", difference, gamma)
    assert actual == pytest.approx(loss, rel=1e-9)
    if derivative is not None:
        assert slope == pytest.approx(derivative, abs=1e-8)


@pytest.mark.parametrize(
    ("score", "value", "derivative"),
    [
        (0.0, -3.2188758248682006, 0.0),  # -2 ln 5
        (3.0, -2.772588722239781, 0.375),  # -ln 2 - ln 8; 1/2 - 1/8
        (4.999, 4.6052702, 999.89999),
        (-4.999, 4.6052702, -999.89999),
        (5.0, 5.6051701, 999.89999),
        (-6.0, 4.6052702 + 999.89999 * 1.001, -999.89999),
        (100.0, 4.6052702 + 999.89999 * 95.001, 999.89999),
    ],
)
def test_log_barrier_inside_at_its_edge_and_outside(score, value, derivative):
    assert penalty("log_barrier", score) == pytest.approx((value, derivative), rel=2e-8)


def test_log_barrier_joins_its_tangent_without_a_step():
    inside, outside = penalty("log_barrier", 4.999 - 1e-9), penalty("log_barrier", 4.999 + 1e-9)
    assert inside[0] == pytest.approx(outside[0], abs=3e-6)
    assert inside[1] == pytest.approx(outside[1], rel=1e-5)


def test_log_barrier_follows_its_bound():
    assert penalty("log_barrier", 0.0, bound=10.0)[0] == pytest.approx(-2 * math.log(10), rel=1e-12)
    assert penalty("log_barrier", 10.5, bound=10.0)[1] > 900


def test_l2_and_none():
    assert penalty("L2", -3.0) == (9.0, -6.0)
    assert penalty("none", 7.0) == (0.0, 0.0)


@pytest.mark.parametrize("loss_type", ["ranking", "focal"])
def test_the_first_loss_of_a_zero_head_is_analytic(loss_type):
    loss = LossSection.model_validate({"loss_type": loss_type})
    first, second = objective(
        torch.zeros(4),
        torch.tensor([0, 2]),
        torch.tensor([1, 3]),
        torch.ones(2),
        loss,
        total_weight=2,
        total_scores=4,
    )
    assert float(first + second) == pytest.approx(0.62877, abs=1e-5)


# Eight packs of very uneven sizes, pairs of very uneven lengths and weights.
PACKS = [1, 5, 2, 1, 7, 1, 3, 2]


def uneven_packs():
    generator = np.random.default_rng(3)
    draw = generator.integers
    return [
        [
            random_group(generator, int(draw(1, 25)), (int(draw(1, 20)), int(draw(1, 5))), weight=float(draw(1, 4)))
            for _ in range(count)
        ]
        for count in PACKS
    ]


def gradient_of(network, forwards, loss):
    """Gradients of one step over these forwards, and its loss."""
    groups = [group for forward in forwards for group in forward]
    total_weight, total_scores = sum(group.weight for group in groups), 2 * len(groups)
    network.zero_grad()
    whole = 0.0
    for forward in forwards:
        scores = model.scores(network, batch.build_packed(forward))
        pairs = batch.build_pairs(forward)
        parts = objective(scores, pairs.chosen, pairs.rejected, pairs.weights, loss, total_weight, total_scores)
        sum(parts).backward()
        whole += float(sum(parts).detach())
    return whole, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", ["ranking", "focal"])
@pytest.mark.parametrize("penalty_type", ["log_barrier", "L2", "none"])
def test_a_step_over_uneven_packs_equals_one_unpacked_batch(loss_type, penalty_type):
    """The reference: every conversation alone, and the mean written down as the definition has it."""
    loss = LossSection.model_validate({"loss_type": loss_type, "penalty_type": penalty_type})
    network, packs = tiny_model("llama", dtype=torch.float64), uneven_packs()
    network.score.weight.data *= 0.3
    actual_loss, actual = gradient_of(network, packs, loss)

    network.set_attn_implementation("sdpa")  # eager takes its softmax in float32
    network.zero_grad()
    groups = [group for pack in packs for group in pack]
    scores = model.scores(network, batch.build_padded(groups, pad_token_id=0)).reshape(-1, 2)
    weights = torch.tensor([group.weight for group in groups], dtype=torch.float64)
    per_pair = LOSSES[loss_type](scores[:, 0], scores[:, 1], 2.0)
    expected_loss = (weights * per_pair).sum() / weights.sum() + 0.02 * PENALTIES[penalty_type](scores, 5.0).mean()
    expected_loss.backward()
    assert actual_loss == pytest.approx(float(expected_loss.detach()), rel=1e-9)
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert (actual[name] - parameter.grad).norm() <= 1e-6 * parameter.grad.norm(), name


def test_every_split_of_accumulation_gives_the_same_gradient():
    loss = LossSection.model_validate({})
    network, packs = tiny_model("llama", dtype=torch.float64), uneven_packs()[:5]
    _, expected = gradient_of(network, packs, loss)
    for cuts in itertools.product([False, True], repeat=len(packs) - 1):
        forwards = [list(packs[0])]
        for cut, pack in zip(cuts, packs[1:], strict=True):
            if cut:
                forwards.append(list(pack))
            else:
                forwards[-1] += pack
        _, actual = gradient_of(network, forwards, loss)
        for name, value in expected.items():
            assert (actual[name] - value).norm() <= 1e-6 * value.norm(), (cuts, name)


def test_averaging_per_pack_would_have_been_noticed():
    """The negative control: XTuner's weighting, a mean of the packs' means, is far away."""
    loss = LossSection.model_validate({})
    network, packs = tiny_model("llama", dtype=torch.float64), uneven_packs()
    _, expected = gradient_of(network, packs, loss)
    means = [gradient_of(network, [pack], loss)[1] for pack in packs]
    averaged = sum(mean["score.weight"] for mean in means) / len(means)
    assert (averaged - expected["score.weight"]).norm() > 0.05 * expected["score.weight"].norm()
