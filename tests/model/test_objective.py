"""Losses and penalties against values computed by hand, and the weighting of pairs over packs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from rmcli.config.sections import LossSection
from rmcli.model import batch, forward
from rmcli.model.losses import LOSSES, PENALTIES, objective, plackett_luce
from rmcli.model.metrics import PairMetrics
from rmcli.records import PAIR, Comparison, TokenGroup
from support.networks import random_group, tiny_model


def pair_loss(name: str, difference: float, label: float = 1.0, margin: float = 0.0, **keys: float):
    """Loss and its derivative by the difference, in float64."""
    delta = torch.tensor([difference], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    section = LossSection.model_validate({"loss_type": name, **keys})
    loss = LOSSES[name](delta, label * one, margin * one, section)
    loss.sum().backward()
    return float(loss.detach()), float(delta.grad)


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
    actual, slope = pair_loss("focal", difference, gamma=gamma)
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


# --- the penalty of pairs ---

CENTERED = LossSection(loss_type="ranking", penalty_type="center", penalty_weight=0.01)


def of_groups(scores: list[float], groups: list[TokenGroup], loss: LossSection = CENTERED):
    """(pair loss, penalty) of groups that make a step of their own, and the gradient of the penalty by the scores."""
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    targets = batch.build_targets(groups, loss.loss_type)
    pairs, centered = objective(leaf, targets, loss, sum(group.weight for group in groups), len(scores))
    (gradient,) = torch.autograd.grad(centered, leaf)
    return float(pairs.detach()), float(centered.detach()), gradient.tolist()


def test_center_is_trls():
    """TRL 1.16's RewardTrainer.compute_loss, its lines: scores of two pairs, coefficient 0.01."""
    chosen, rejected = torch.tensor([1.5, -0.25]), torch.tensor([0.5, 2.0])
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    loss += 0.01 * torch.mean((chosen + rejected) ** 2)
    generator = np.random.default_rng(0)
    pairs, centered, gradient = of_groups([1.5, 0.5, -0.25, 2.0], [random_group(generator, 2, (1, 1))] * 2)
    assert pairs + centered == pytest.approx(float(loss), rel=1e-6)
    assert centered == pytest.approx(0.01 * (4 + 3.0625) / 2, rel=1e-12)  # (2^2 + 1.75^2) / 2
    assert gradient == pytest.approx([0.02, 0.02, 0.0175, 0.0175], rel=1e-12)  # 2 (c + r) / 2, times 0.01


def test_center_weighs_groups_as_the_loss_does():
    """A pair of weight 3, and three answers of which all three pairs share the weight 1."""
    generator = np.random.default_rng(0)
    three = tuple(Comparison(*pair) for pair in ((0, 1), (0, 2), (1, 2)))
    groups = [
        random_group(generator, 2, (1, 1), weight=3.0),
        random_group(generator, 2, (1, 1, 1), comparisons=three, ordered=True),
    ]
    scores = [1.0, 1.0, 2.0, 1.0, -1.0]
    expected = 0.01 * (3 * 4 + (9 + 1 + 0) / 3) / 4
    assert of_groups(scores, groups)[1] == pytest.approx(expected, rel=1e-7)  # weights are float32
    as_list = CENTERED.model_copy(update={"loss_type": "plackett_luce"})
    _, of_list, slope = of_groups(scores, groups, as_list)
    assert of_list == pytest.approx(expected, rel=1e-12)
    assert slope == pytest.approx(of_groups(scores, groups)[2], rel=1e-7)


@pytest.mark.parametrize("loss_type", ["ranking", "focal"])
def test_the_first_loss_of_a_zero_head_is_analytic(loss_type):
    loss = LossSection.model_validate({"loss_type": loss_type})
    pairs = [random_group(np.random.default_rng(0), 2, (1, 1)) for _ in range(2)]
    first, second = objective(
        torch.zeros(4), batch.build_targets(pairs, loss_type), loss, total_weight=2, total_scores=4
    )
    assert float(first + second) == pytest.approx(0.62877, abs=1e-5)


# --- soft labels, margins, ties, lists: against their formulas ---


@pytest.mark.parametrize(("difference", "label"), [(0.0, 0.7), (1.5, 0.7), (-2.0, 0.5), (3.0, 0.0)])
def test_a_soft_label_is_a_cross_entropy(difference, label):
    p = 1 / (1 + math.exp(-difference))
    expected = -(label * math.log(p) + (1 - label) * math.log(1 - p))
    assert pair_loss("ranking", difference, label) == pytest.approx((expected, p - label), rel=1e-12)


def test_label_smoothing_is_that_of_conservative_dpo():
    """-(1 - e) log sigmoid(d) - e log sigmoid(-d), arXiv 2403.00409."""
    p = 1 / (1 + math.exp(-1.2))
    expected = -(0.9 * math.log(p) + 0.1 * math.log(1 - p))
    assert pair_loss("ranking", 1.2, label_smoothing=0.1)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="has no meaning with focal"):
        LossSection.model_validate({"loss_type": "focal", "label_smoothing": 0.1})


def test_the_margin_is_subtracted_as_in_llama_2():
    """-log sigmoid(d - m), arXiv 2307.09288."""
    loss, slope = pair_loss("margin", 1.0, margin=3.0, margin_scale=0.5)
    assert loss == pytest.approx(math.log(1 + math.exp(0.5)), rel=1e-12)
    assert slope == pytest.approx(-1 / (1 + math.exp(-0.5)), rel=1e-12)
    assert pair_loss("margin", 1.0) == pytest.approx(pair_loss("ranking", 1.0), rel=1e-15)


@pytest.mark.parametrize("difference", [0.0, 0.4, -3.0])
@pytest.mark.parametrize("theta", [2.0, 1.1])
def test_ties_are_rao_and_kuppers(difference, theta):
    """P(first) = e^a / (e^a + theta e^b); the three outcomes add up to 1 (Rao and Kupper 1967)."""
    a, b = math.exp(difference), 1.0
    first, second = a / (a + theta * b), b / (b + theta * a)
    tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
    assert first + second + tie == pytest.approx(1.0, rel=1e-12)
    keys = {"tie_threshold": math.log(theta)}
    assert pair_loss("ties", difference, **keys)[0] == pytest.approx(-math.log(first), rel=1e-12)
    assert pair_loss("ties", difference, 0.0, **keys)[0] == pytest.approx(-math.log(second), rel=1e-12)
    assert pair_loss("ties", difference, 0.5, **keys)[0] == pytest.approx(-math.log(tie), rel=1e-11)
    mixed = -(0.8 * math.log(first) + 0.2 * math.log(second))
    assert pair_loss("ties", difference, 0.8, **keys)[0] == pytest.approx(mixed, rel=1e-12)


def test_plackett_luce_multiplies_choices_among_the_rest():
    """P = e^s1/(e^s1+e^s2+e^s3) * e^s2/(e^s2+e^s3) (Plackett 1975)."""
    one, two, three = (math.exp(score) for score in (0.3, 1.1, -0.6))
    expected = -math.log(one / (one + two + three) * two / (two + three))
    scores = torch.tensor([[0.3, 1.1, -0.6, 9.9], [0.5, -0.5, 9.9, 9.9]], dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, True, False], [True, True, False, False]])
    losses = plackett_luce(scores, present)
    pair = pair_loss("ranking", 1.0)[0]
    assert losses.tolist() == pytest.approx([expected, pair], rel=1e-12)
    losses.sum().backward()
    assert scores.grad[~present].abs().max() == 0  # what fills up the list has no part in it


ORDERED_3 = tuple(Comparison(first, second) for first, second in ((0, 1), (0, 2), (1, 2)))
CYCLE = (Comparison(0, 1), Comparison(1, 2), Comparison(2, 0))
ALL_EQUAL = (Comparison(0, 1, 0.5), Comparison(1, 2, 0.5))


def k_way(comparisons: tuple, ordered: bool = False, num_responses: int = 3, **values: float) -> TokenGroup:
    group = random_group(np.random.default_rng(7), 4, (3,) * num_responses, **values)
    return dataclasses.replace(group, comparisons=comparisons, ordered=ordered)


def test_plackett_luce_takes_orders_as_lists_and_others_pairwise():
    groups = [k_way(ORDERED_3, True, weight=2.0), k_way(CYCLE), k_way(ALL_EQUAL), k_way(PAIR, True, 2)]
    assert [batch.is_used(group, "plackett_luce") for group in groups] == [True, True, False, True]
    targets = batch.build_targets([groups[0], groups[1], groups[3]], "plackett_luce")
    assert targets.orders.tolist() == [[0, 1, 2]]
    assert targets.order_weights.tolist() == [2.0]
    assert list(zip(targets.first.tolist(), targets.second.tolist(), strict=True)) == [(3, 4), (4, 5), (5, 3), (6, 7)]
    assert targets.weights.tolist() == pytest.approx([1 / 3] * 3 + [1.0])  # pairs of one group share its weight
    assert len(targets.better) == 3 + 3 + 1


def test_focal_leaves_ties_and_soft_labels_out_and_the_others_take_them():
    mixed = k_way((Comparison(0, 1), Comparison(1, 2, 0.5), Comparison(0, 2, 0.8)))
    assert len(batch.comparisons_of(mixed, "focal")) == 1
    assert len(batch.comparisons_of(mixed, "ranking")) == 3
    assert not batch.is_used(k_way(ALL_EQUAL), "focal")
    targets = batch.build_targets([mixed], "ranking")
    assert (targets.better.tolist(), targets.worse.tolist()) == ([0, 0], [1, 2])  # a tie is neither right nor wrong


def test_a_soft_label_below_one_half_means_that_the_second_is_better():
    targets = batch.build_targets([k_way((Comparison(0, 1, 0.2),), num_responses=2)], "ranking")
    assert (targets.better.tolist(), targets.worse.tolist()) == ([1], [0])


@pytest.mark.parametrize("loss_type", ["ranking", "ties", "margin", "plackett_luce"])
def test_k_way_groups_weigh_the_same_however_packs_are_cut(loss_type):
    loss = LossSection.model_validate({"loss_type": loss_type})
    network = tiny_model("llama", dtype=torch.float64)
    groups = [k_way(ORDERED_3, True), k_way(CYCLE), k_way(PAIR, True, 2, weight=3.0), k_way(ORDERED_3, True)]
    whole, expected = gradient_of(network, [groups], loss)
    parts, actual = gradient_of(network, [groups[:1], groups[1:2], groups[2:]], loss)
    assert parts == pytest.approx(whole, rel=1e-12)
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= 1e-9 * value.norm(), name


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
    groups = [group for one in forwards for group in one]
    total_weight = sum(group.weight for group in groups)
    total_scores = sum(len(group.responses) for group in groups)
    network.zero_grad()
    whole = 0.0
    for one in forwards:
        scores = forward.scores(network, batch.build_packed(one))
        parts = objective(scores, batch.build_targets(one, loss.loss_type), loss, total_weight, total_scores)
        sum(parts).backward()
        whole += float(sum(parts).detach())
    return whole, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", ["ranking", "focal"])
@pytest.mark.parametrize("penalty_type", ["log_barrier", "L2", "center", "none"])
def test_a_step_over_uneven_packs_equals_one_unpacked_batch(loss_type, penalty_type):
    """The reference: every conversation alone, and the mean written down as the definition has it."""
    loss = LossSection.model_validate({"loss_type": loss_type, "penalty_type": penalty_type})
    network, packs = tiny_model("llama", dtype=torch.float64), uneven_packs()
    network.score.weight.data *= 0.3
    actual_loss, actual = gradient_of(network, packs, loss)

    network.set_attn_implementation("sdpa")  # eager takes its softmax in float32
    network.zero_grad()
    groups = [group for pack in packs for group in pack]
    scores = forward.scores(network, batch.build_padded(groups, pad_token_id=0)).reshape(-1, 2)
    weights = torch.tensor([group.weight for group in groups], dtype=torch.float64)
    none = torch.zeros(len(groups), dtype=torch.float64)
    per_pair = LOSSES[loss_type](scores[:, 0] - scores[:, 1], none + 1, none, loss)
    if penalty_type == "center":
        mean_penalty = (weights * scores.sum(1).square()).sum() / weights.sum()
    else:
        mean_penalty = PENALTIES[penalty_type](scores, 5.0).mean()
    expected_loss = (weights * per_pair).sum() / weights.sum() + 0.02 * mean_penalty
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


def test_a_window_without_anything_to_learn_from_has_no_means():
    """A step may hold nothing but groups that the loss leaves out; the log line after it must not fail."""
    result = PairMetrics().result()
    assert all(math.isnan(result[name]) for name in ("accuracy", "margin", "score_mean"))
