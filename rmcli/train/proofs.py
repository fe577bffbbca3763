"""What is proven before step 1, besides packed rows (the self-test): that the head learns, and from where.

Axes: S scores of a batch.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rmcli import output
from rmcli.config.sections import LossSection
from rmcli.errors import RmcliError
from rmcli.model.batch import PackedBatch, SingleBatch, build_batch, build_targets, comparisons_of, trains_as_list
from rmcli.model.forward import scores
from rmcli.model.losses import objective
from rmcli.model.network import score_head
from rmcli.model.optim import Optimizer
from rmcli.parallel.collectives import on_first
from rmcli.parallel.parts import own_part, whole
from rmcli.records import BatchKind, Comparison, TokenGroup
from rmcli.runs import state
from rmcli.tokens.tokenizer import RewardTokenizer
from rmcli.train.feed import groups_of
from rmcli.train.job import Job
from rmcli.train.plan import plan

TOLERANCE = 1e-5  # of the first loss, relative: scores are exact zeros, only the sum over pairs rounds
_REPORT = "this is a fault of rmcli: please report it with the output of rmcli doctor --json"


def prove(job: Job, network: Any, optimizer: Optimizer, kind: BatchKind) -> None:
    """Say what is proven, in one line. Raises RmcliError at the first thing that does not hold."""
    head_is_sound(network)
    every_weight_is_trained(network, optimizer)
    head_is_kept(network, state.tensors_of(network, optimizer))
    proven = ["packed rows exact"] if kind == "packed" else []
    proven += ["head finite, trainable, in the optimizer and in the checkpoint"]
    groups = _first_groups(job, kind)
    if groups:
        batch = build_batch(kind, groups, job.reward.pad_token_id, job.device)
        if job.reward.mode != "last":
            scored_at_the_reward_token(batch, job.reward)
            proven.append(f"scores read at {job.reward.reward_token}")
        scores_S = _scores(network, batch, job.config.model.dtype)
        finite(scores_S)
        proven.append("first scores finite")
        if not whole(score_head(network).weight).count_nonzero():
            loss = first_loss_is_analytic(scores_S, groups, job.config.loss)
            proven.append(f"first loss {loss:.4f}, as a zero head's must be")
        elif job.past is None:  # a run that goes on has been through this
            on_first(lambda: inside_the_barrier(scores_S, groups, job.config.loss))
            proven.append(f"the head that is kept scores {float(scores_S.min()):.2f} to {float(scores_S.max()):.2f}")
    output.say(f"proven: {'; '.join(proven)}")


def head_is_sound(network: Any) -> None:
    """Its weight is finite and takes gradients."""
    weight = score_head(network).weight
    if not torch.isfinite(whole(weight)).all():
        raise RmcliError("the weight of the score head is not finite before step 1", _REPORT)
    if not weight.requires_grad:
        raise RmcliError("the weight of the score head takes no gradient: it would never learn", _REPORT)


def every_weight_is_trained(network: Any, optimizer: Optimizer) -> None:
    """The optimizer holds each weight that takes gradients once, at a rate above zero, the head among them."""
    groups = [group for group in optimizer.param_groups if group["peak_lr"] > 0]
    held = Counter(id(weight) for group in groups for weight in group["params"])
    for name, weight in network.named_parameters():
        if weight.requires_grad and held[id(weight)] != 1:
            raise RmcliError(f"{name} is {held[id(weight)]} times in the optimizer, and must be there once", _REPORT)


def head_is_kept(network: Any, tensors: Mapping[str, Tensor]) -> None:
    """The head's own weight is among what a checkpoint is written from."""
    place = own_part(score_head(network).weight).data_ptr()
    if not any(
        name.startswith("model.") and own_part(tensor).data_ptr() == place for name, tensor in tensors.items()
    ):
        raise RmcliError("the weight of the score head is no part of a checkpoint: it would be lost", _REPORT)


def scored_at_the_reward_token(batch: Any, reward: RewardTokenizer) -> None:
    """At every position that a score is read from stands the reward token."""
    ids_S = _ids_at_scores(batch)
    wrong = ids_S[ids_S != reward.reward_token_id]
    if len(wrong):
        raise RmcliError(
            f"{len(wrong)} of {len(ids_S)} scores of the first forward are read at another token than "
            f"{reward.reward_token} ({reward.reward_token_id}), first {int(wrong[0])}",
            "prepare the data again: its rows do not end with the reward token",
        )


def _ids_at_scores(batch: Any) -> Tensor:
    """(S,) the token at each reward position."""
    if isinstance(batch, SingleBatch):
        return torch.cat([_ids_at_scores(one) for one in batch.conversations])
    if isinstance(batch, PackedBatch):
        return batch.input_ids[0, batch.score_index]
    return batch.input_ids[torch.arange(len(batch.score_index), device=batch.input_ids.device), batch.score_index]


def finite(scores_S: Tensor) -> None:
    """Raises where a hidden state is not: zero times NaN is NaN."""
    broken = int((~torch.isfinite(scores_S)).sum())
    if broken:
        raise RmcliError(
            f"{broken} of {len(scores_S)} scores of the first forward are not finite before step 1",
            "model.dtype=float32 shows whether it is the precision; else the backbone's weights are damaged",
        )


def first_loss_is_analytic(scores_S: Tensor, groups: list[TokenGroup], loss: LossSection) -> float:
    """What the loss of these groups is by hand where all scores are zero; raises where the objective differs."""
    targets = build_targets(groups, loss.loss_type, scores_S.device)
    total_weight, num_scores = sum(group.weight for group in groups), len(scores_S)
    measured = float(sum(objective(scores_S, targets, loss, total_weight, num_scores)))
    expected = loss_of_zero_scores(groups, loss)
    if not math.isclose(measured, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise RmcliError(
            f"the first loss of a zero head is {measured:.6f}, and by hand {expected:.6f} ({loss.loss_type}, "
            f"{loss.penalty_type})",
            _REPORT,
        )
    return expected


def inside_the_barrier(scores_S: Tensor, groups: list[TokenGroup], loss: LossSection) -> None:
    """Raises where a trained head's scores lie outside the log barrier: it alone would then be learned from."""
    largest, bound = float(scores_S.abs().max()), loss.penalty_bound
    if loss.penalty_type != "log_barrier" or not loss.penalty_weight or largest < bound:
        return
    targets = build_targets(groups, loss.loss_type, scores_S.device)
    parts = objective(scores_S, targets, loss, sum(group.weight for group in groups), len(scores_S))
    pairs, penalty = (float(part) for part in parts)
    raise RmcliError(
        f"the model's scores reach {largest:.3g} before step 1, and the log barrier stands at loss.penalty_bound = "
        f"{bound:g}: its penalty is {penalty:.3g} there, the pairs' loss {pairs:.3g}",
        f"keep the scores as they are by -s loss.penalty_type=none, L2 or center, or by a larger bound: "
        f"-s loss.penalty_bound={math.ceil(1.5 * largest)}",
    )


def loss_of_zero_scores(groups: list[TokenGroup], loss: LossSection) -> float:
    """By hand: the mean over groups, by weight, of what two (or K) equal scores cost, plus the penalty at 0."""
    costs = (group.weight * _cost_of_equal_scores(group, loss) for group in groups)
    penalty = -2 * math.log(loss.penalty_bound) if loss.penalty_type == "log_barrier" else 0.0
    return sum(costs) / sum(group.weight for group in groups) + loss.penalty_weight * penalty


def _cost_of_equal_scores(group: TokenGroup, loss: LossSection) -> float:
    """ln 2 for a pair, ln K! for a list; with a margin or a threshold what that alone costs."""
    if trains_as_list(group, loss.loss_type):
        return math.lgamma(len(group.responses) + 1)
    pairs = comparisons_of(group, loss.loss_type)
    return sum(_cost_of_equal_pair(pair, loss) for pair in pairs) / len(pairs)


def _cost_of_equal_pair(pair: Comparison, loss: LossSection) -> float:
    if loss.loss_type == "margin":
        ahead = loss.margin_scale * pair.margin  # what the better one is asked to be ahead by
        smooth = pair.label + loss.label_smoothing * (1 - 2 * pair.label)
        return _cost_behind(ahead) - (1 - smooth) * ahead
    if loss.loss_type == "ties":
        lost = _cost_behind(loss.tie_threshold)
        return 2 * lost - math.log(math.expm1(2 * loss.tie_threshold)) if pair.is_tie else lost
    return math.log(2)


def _cost_behind(distance: float) -> float:
    """-log sigmoid(-distance)."""
    return max(distance, 0.0) + math.log1p(math.exp(-abs(distance)))


def _first_groups(job: Job, kind: BatchKind) -> list[TokenGroup]:
    """Those of the run's first forward that has any for this loss."""
    steps = plan(job.sizes, job.config.train, kind, job.config.data.max_packed_length)
    forwards = (forward for step in steps for forward in step.forwards[0])
    each = (groups_of(job.train_split, forward, job.config.loss.loss_type) for forward in forwards)
    return next((groups for groups in each if groups), [])


def _scores(network: Any, batch: Any, dtype: str) -> Tensor:
    """(S,) without dropout and gradients; draws no random number."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            return scores(network, batch, dtype)
    finally:
        network.train(was_training)
