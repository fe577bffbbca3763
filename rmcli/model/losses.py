"""The objective's parts: what a comparison costs, and what a score or a pair of scores costs. Scores are float32 or
float64.

Pair losses work element by element on the difference of two scores; the weighting over comparisons, packs and
accumulation steps is `objective`'s and the training loop's.
Axes: S scores, N comparisons, G groups in strict order, K responses of the longest of them, M pairs for the metrics.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rmcli.config.sections import LossSection

# The log barrier is exact up to this distance from its bound and continues along its tangent beyond.
BARRIER_MARGIN = 0.001

# (difference first - second, labels, margins, section), all but the last of shape (N,).
PairLoss = Callable[[Tensor, Tensor, Tensor, LossSection], Tensor]
Penalty = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Targets:
    """What the scores of one forward are held against, as indices into them.

    `first`, `second`, `labels`, `margins`, `weights`: (N,) the comparisons that train pairwise.
    `orders`: (G, K) groups that train as whole lists, best first, filled up with -1; `order_weights`: (G,).
    `better`, `worse`: (M,) the pairs that count in accuracy and margin; ties are left out.
    """

    first: Tensor
    second: Tensor
    labels: Tensor
    margins: Tensor
    weights: Tensor
    orders: Tensor
    order_weights: Tensor
    better: Tensor
    worse: Tensor


def ranking(difference: Tensor, labels: Tensor, margins: Tensor, loss: LossSection) -> Tensor:
    """Bradley-Terry: -log sigmoid(first - second). A soft label p, or a tie (1/2), is a cross-entropy.

    With `label_smoothing` e the label is (1 - e) p + e (1 - p), as in conservative DPO (arXiv 2403.00409, section 4).
    """
    smooth = labels + loss.label_smoothing * (1 - 2 * labels)
    return -(smooth * logsigmoid(difference) + (1 - smooth) * logsigmoid(-difference))


def focal(difference: Tensor, labels: Tensor, margins: Tensor, loss: LossSection) -> Tensor:
    """InternLM2's focal ranking loss (arXiv 2403.17297, section 4.2): easy pairs, P > 1/2, count less.

    For plain preferences only. At a difference of 0 the gradient is that of the ranking loss, -1/2: relu's derivative
    at 0 is 0.
    """
    probability = torch.sigmoid(difference)
    return (1 - 2 * relu(probability - 0.5)).pow(loss.gamma) * -logsigmoid(difference)


def margin(difference: Tensor, labels: Tensor, margins: Tensor, loss: LossSection) -> Tensor:
    """Llama 2's ranking loss with the margin of the ratings: -log sigmoid(first - second - m) (arXiv 2307.09288,
    section 3.2.2), m = margin_scale times the data's margin."""
    return ranking(difference - loss.margin_scale * margins, labels, margins, loss)


def ties(difference: Tensor, labels: Tensor, margins: Tensor, loss: LossSection) -> Tensor:
    """Bradley-Terry with ties (Rao and Kupper 1967; for reward models arXiv 2410.05328).

    With t = tie_threshold: P(first wins) = sigmoid(d - t), P(second wins) = sigmoid(-d - t), the rest is a tie, which
    is (e^2t - 1) times the product of the two. A soft label mixes the two wins.
    """
    first_wins = -logsigmoid(difference - loss.tie_threshold)
    second_wins = -logsigmoid(-difference - loss.tie_threshold)
    tie = first_wins + second_wins - math.log(math.expm1(2 * loss.tie_threshold))
    return torch.where(labels == 0.5, tie, labels * first_wins + (1 - labels) * second_wins)


def plackett_luce(scores_GK: Tensor, present_GK: Tensor) -> Tensor:
    """(G,) -log P(order) of each list, best first: the best is chosen among all, the next among the rest, and so on
    (Plackett 1975, Luce 1959; ListMLE). With two responses it is the ranking loss."""
    lowest = torch.finfo(scores_GK.dtype).min
    masked = scores_GK.masked_fill(~present_GK, lowest)
    among_the_rest = masked.flip(-1).logcumsumexp(-1).flip(-1)
    return ((among_the_rest - scores_GK) * present_GK).sum(-1)


def log_barrier(scores: Tensor, bound: float) -> Tensor:
    """InternLM2's barrier -log(bound - x) - log(bound + x), continued along its tangent near and past the bound.

    XTuner clamps there instead: an escaped score then has no gradient and never returns. Ours pulls it back.
    """
    edge = bound - BARRIER_MARGIN
    value_at_edge = -math.log(bound - edge) - math.log(bound + edge)
    slope_at_edge = 1 / (bound - edge) - 1 / (bound + edge)
    inside = scores.clamp(-edge, edge)
    overshoot = relu(scores.abs() - edge)
    barrier = -torch.log(bound - inside) - torch.log(bound + inside)
    return torch.where(overshoot > 0, value_at_edge + slope_at_edge * overshoot, barrier)


def l2(scores: Tensor, bound: float) -> Tensor:
    """x squared. `bound` is not used."""
    return scores.square()


def no_penalty(scores: Tensor, bound: float) -> Tensor:
    """Zero, with a gradient of zero."""
    return scores * 0


def center(scores_S: Tensor, targets: Targets) -> Tensor:
    """The sum over groups of weight times the mean of (x + y)^2 over their pairs: scores around zero.

    arXiv 2312.09244, equation 2; TRL's `center_rewards_coefficient` weighs its mean over pairs. The sum over all
    pairs of a list of K is (K - 2) times the sum of squares plus the square of the sum.
    """
    sums_N = scores_S[targets.first] + scores_S[targets.second]
    penalty = (targets.weights * sums_N.square()).sum()
    if len(targets.orders):
        present_GK = targets.orders >= 0
        scores_GK = scores_S[targets.orders.clamp(min=0)].masked_fill(~present_GK, 0)
        count_G = present_GK.sum(-1)
        all_pairs_G = (count_G - 2) * scores_GK.square().sum(-1) + scores_GK.sum(-1).square()
        penalty = penalty + (targets.order_weights * all_pairs_G / (count_G * (count_G - 1) / 2)).sum()
    return penalty


# plackett_luce trains groups in strict order as lists; what has no order trains pairwise, by the ranking loss.
LOSSES: dict[str, PairLoss] = {
    "ranking": ranking,
    "focal": focal,
    "margin": margin,
    "ties": ties,
    "plackett_luce": ranking,
}
PENALTIES: dict[str, Penalty] = {"log_barrier": log_barrier, "L2": l2, "none": no_penalty}
CENTER = "center"  # the penalty of pairs


def objective(
    scores_S: Tensor, targets: Targets, loss: LossSection, total_weight: float, total_scores: int
) -> tuple[Tensor, Tensor]:
    """This forward's share of a step's loss: (preference loss, weighted penalty), two scalars to add up.

    `total_weight` and `total_scores` are sums over the whole optimizer step, all its forwards and ranks. Every group
    weighs the same however packs are cut: the shares of all forwards add up to the loss of one big batch.
    """
    difference_N = scores_S[targets.first] - scores_S[targets.second]
    labels_N, margins_N = targets.labels.to(scores_S.dtype), targets.margins.to(scores_S.dtype)
    pair_loss_N = LOSSES[loss.loss_type](difference_N, labels_N, margins_N, loss)
    share = (targets.weights * pair_loss_N).sum()
    if len(targets.orders):
        lists_G = plackett_luce(scores_S[targets.orders.clamp(min=0)], targets.orders >= 0)
        share = share + (targets.order_weights * lists_G).sum()
    if loss.penalty_type == CENTER:
        penalty = center(scores_S, targets)
    else:
        penalty = PENALTIES[loss.penalty_type](scores_S, loss.penalty_bound).sum()
    mean_penalty = penalty / num_penalties(loss, total_weight, total_scores)
    return share / total_weight, loss.penalty_weight * mean_penalty


def num_penalties(loss: LossSection, total_weight: float, total_scores: int) -> float:
    """What a sum of penalties is divided by for its mean: one is of each score, or of each group, by its weight."""
    return total_weight if loss.penalty_type == CENTER else total_scores
