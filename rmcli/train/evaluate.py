"""The held-out pairs: loss, accuracy, margin and score range."""

from contextlib import nullcontext
from typing import Any

import torch

from rmcli.config.sections import Config
from rmcli.model.batch import build_batch, build_targets
from rmcli.model.forward import scores
from rmcli.model.losses import objective
from rmcli.model.metrics import PairMetrics
from rmcli.packs.reader import PackedSplit
from rmcli.records import BatchKind
from rmcli.train.feed import groups_of
from rmcli.train.pieces import Slice


def evaluate(network: Any, split: PackedSplit, config: Config, pad_token_id: int, kind: BatchKind) -> dict[str, Any]:
    """Over all held-out pairs: loss (as in training, whole and in parts), accuracy, margin, score range. Empty
    without any."""
    # Rows keep their own sizes here: compiled layers would be built again and again.
    compiled = config.train.kernels == "compile"
    with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return _evaluate(network, split, config, pad_token_id, kind)


def _evaluate(network: Any, split: PackedSplit, config: Config, pad_token_id: int, kind: BatchKind) -> dict[str, Any]:
    forwards = [[Slice(row, 0, count)] for row, count in enumerate(split.groups_per_pack)]
    if kind == "padded":
        single = [Slice(row, g, g + 1) for row, count in enumerate(split.groups_per_pack) for g in range(count)]
        size = config.train.batch_size
        forwards = [single[at : at + size] for at in range(0, len(single), size)]
    if not forwards:
        return {}
    network.eval()
    metrics = PairMetrics()
    loss_sum, weight_sum, penalty_sum = 0.0, 0.0, 0.0
    for forward in forwards:
        groups = groups_of(split, forward, config.loss.loss_type)
        if not groups:
            continue
        batch = build_batch(kind, groups, pad_token_id, network.device)
        targets = build_targets(groups, config.loss.loss_type, network.device)
        scores_S = scores(network, batch, config.model.dtype)
        preference_loss, penalty = objective(scores_S, targets, config.loss, 1.0, 1)
        loss_sum, penalty_sum = loss_sum + float(preference_loss), penalty_sum + float(penalty)
        weight_sum += sum(group.weight for group in groups)
        metrics.add(scores_S, targets.better, targets.worse)
    if not metrics.num_scores:
        return {}
    pair_loss, mean_penalty = loss_sum / weight_sum, penalty_sum / metrics.num_scores
    values = {
        "loss": pair_loss + mean_penalty,
        "pair_loss": pair_loss,
        "penalty": mean_penalty,
        **metrics.result(),
        "pairs": metrics.num_pairs,
    }
    return {f"eval_{name}": value for name, value in values.items()}
