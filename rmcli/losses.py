"""The objective's two registries: what a pair costs, and what a score costs. Scores come in as float32 or float64.

All functions work element by element and return the shape they were given; the weighting over pairs, packs and
accumulation steps is the training loop's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rmcli.config import LossSection

# The log barrier is exact up to this distance from its bound and continues along its tangent beyond.
BARRIER_MARGIN = 0.001

PairLoss = Callable[[Tensor, Tensor, float], Tensor]
Penalty = Callable[[Tensor, float], Tensor]


def ranking(chosen: Tensor, rejected: Tensor, gamma: float) -> Tensor:
    """Bradley-Terry: -log sigmoid(chosen - rejected). `gamma` is not used."""
    return -logsigmoid(chosen - rejected)


def focal(chosen: Tensor, rejected: Tensor, gamma: float) -> Tensor:
    """InternLM2's focal ranking loss (arXiv 2403.17297, section 4.2): easy pairs, P > 1/2, count less.

    At a tie the gradient is that of the ranking loss, -1/2: relu's derivative at 0 is 0.
    """
    probability = torch.sigmoid(chosen - rejected)
    return (1 - 2 * relu(probability - 0.5)).pow(gamma) * ranking(chosen, rejected, gamma)


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


LOSSES: dict[str, PairLoss] = {"ranking": ranking, "focal": focal}
PENALTIES: dict[str, Penalty] = {"log_barrier": log_barrier, "L2": l2, "none": no_penalty}


def objective(
    scores_S: Tensor,
    chosen_N: Tensor,
    rejected_N: Tensor,
    weights_N: Tensor,
    loss: LossSection,
    total_weight: float,
    total_scores: int,
) -> tuple[Tensor, Tensor]:
    """This forward's share of a step's loss: (pair loss, weighted penalty), two scalars to add up.

    `total_weight` and `total_scores` are sums over the whole optimizer step, all its forwards and ranks. Every pair
    weighs the same however packs are cut: the shares of all forwards add up to the loss of one big batch.
    """
    pair_loss_N = LOSSES[loss.loss_type](scores_S[chosen_N], scores_S[rejected_N], loss.gamma)
    penalty_S = PENALTIES[loss.penalty_type](scores_S, loss.penalty_bound)
    pair_share = (weights_N * pair_loss_N).sum() / total_weight
    return pair_share, loss.penalty_weight * penalty_S.sum() / total_scores
