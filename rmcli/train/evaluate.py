"""The pairs of a split that is not trained on: loss, accuracy, margin, score range, calibration and length."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmcli.config.sections import Config, LossSection
from rmcli.model.batch import build_targets
from rmcli.model.losses import Targets, num_penalties, objective
from rmcli.model.metrics import PairMetrics
from rmcli.model.network import flop_counter
from rmcli.packs.reader import PackedSplit
from rmcli.parallel import world
from rmcli.parallel.collectives import add_up, on_first
from rmcli.records import BatchKind, TokenGroup
from rmcli.scorer.run import run_forward
from rmcli.train.balance import ByRank, share_out
from rmcli.train.feed import groups_of
from rmcli.train.pieces import PackSizes, Slice
from rmcli.train.scored import Scored, figures_of_scores, of_all, of_forward
from rmcli.train.share import Share
from rmcli.train.spread import Spread


@dataclass(frozen=True)
class Evaluation:
    """`figures` by their names (config/sections_of_evaluation.py), and the groups that they are of, in order of rows.

    Both are empty without any pairs. The groups are the first process's alone.
    """

    figures: dict[str, Any]
    scored: Sequence[Scored] = ()


def evaluate(
    network: Any,
    split: PackedSplit,
    config: Config,
    pad_token_id: int,
    kind: BatchKind,
    spread: Spread,
) -> Evaluation:
    """Over all pairs of the split: loss (as in training, whole and in parts), accuracy, margin, score range; the
    accuracy where the better answer is the shorter one, and where it is the longer; calibration and length. Each
    process runs its share of them; all get the same figures.
    """
    # Rows keep their own sizes here: compiled layers would be built again and again.
    compiled = config.train.kernels == "compile"
    with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        network.eval()
        metrics, by_length = PairMetrics(), {"shorter": PairMetrics(), "longer": PairMetrics()}
        loss_sum, weight_sum, penalty_sum = 0.0, 0.0, 0.0
        scored: list[Scored] = []
        for own in _shares(network, split, config, kind, spread):
            scores_S = run_forward(network, own.all_groups, kind, pad_token_id, config.model.dtype)[: own.num_scores]
            targets = build_targets(own.groups, config.loss.loss_type, network.device)
            preference_loss, penalty = objective(scores_S, targets, config.loss, 1.0, 1)
            loss_sum, penalty_sum = loss_sum + float(preference_loss), penalty_sum + float(penalty)
            weight_sum += sum(group.weight for group in own.groups)
            metrics.add(scores_S, targets.better, targets.worse)
            _add_by_length(by_length, own.groups, scores_S, targets)
            scored += of_forward(own.groups, scores_S.tolist(), config.loss.loss_type)
    sums = add_up(torch.tensor([loss_sum, penalty_sum, weight_sum], dtype=torch.float64)) * spread.share
    found = _result(metrics.summed(network.device, spread.share), config.loss, *sums.tolist())
    for name, some in by_length.items():
        found |= _result_by_length(name, some.summed(network.device, spread.share)) if found else {}
    everything = of_all(scored, spread)
    found |= on_first(lambda: figures_of_scores(everything)) if found else {}
    return Evaluation(found, everything if found and world.is_first() else ())


def _add_by_length(
    by_length: Mapping[str, PairMetrics], groups: Sequence[TokenGroup], scores_S: Tensor, targets: Targets
) -> None:
    """Pairs whose better answer is the shorter one, in tokens, and those in which it is the longer one."""
    lengths = [len(response) for group in groups for response in group.responses]
    lengths_S = torch.tensor(lengths, device=scores_S.device)
    longer_by_M = lengths_S[targets.better] - lengths_S[targets.worse]
    for name, chosen_M in (("shorter", longer_by_M < 0), ("longer", longer_by_M > 0)):
        by_length[name].add(scores_S, targets.better[chosen_M], targets.worse[chosen_M])


def _result_by_length(name: str, metrics: PairMetrics) -> dict[str, Any]:
    pairs = int(metrics.num_pairs)
    accuracy = {f"{name}_accuracy": metrics.result()["accuracy"]} if pairs else {}
    return {f"{name}_pairs": pairs, **accuracy}


def _result(
    metrics: PairMetrics, loss: LossSection, loss_sum: float, penalty_sum: float, weight_sum: float
) -> dict[str, Any]:
    if not metrics.num_scores:
        return {}
    pair_loss = loss_sum / weight_sum
    mean_penalty = penalty_sum / num_penalties(loss, weight_sum, int(metrics.num_scores))
    return {
        "loss": pair_loss + mean_penalty,
        "pair_loss": pair_loss,
        "penalty": mean_penalty,
        **metrics.result(),
        "pairs": int(metrics.num_pairs),
    }


def _shares(network: Any, split: PackedSplit, config: Config, kind: BatchKind, spread: Spread) -> Iterator[Share]:
    """This rank's groups of each round that has any for the loss."""
    for planned in zip(*_forwards(network, split, config, kind, spread.ranks), strict=True):
        side_by_side = [groups_of(split, forward, config.loss.loss_type) for forward in planned]
        if any(side_by_side):
            yield Share.of(side_by_side, spread.rank, kind)


def _forwards(network: Any, split: PackedSplit, config: Config, kind: BatchKind, ranks: int) -> ByRank:
    """By rank: packs one by one, or padded groups as in training; of several ranks equally many."""
    limit = config.data.max_packed_length
    packs = [piece for pack in range(len(split)) for piece in _within(limit, split, pack)]
    pieces = [Slice(p.pack, g, g + 1) for p in packs for g in range(p.start, p.stop)] if kind == "padded" else packs
    size = config.train.batch_size if kind == "padded" else 1
    if ranks == 1 or not pieces:
        return (tuple(tuple(pieces[at : at + size]) for at in range(0, len(pieces), size)),) * ranks
    sizes = PackSizes.of(split, flop_counter(network))
    train = config.train.model_copy(update={"pairs_per_step": None, "batch_size": size})
    return share_out(pieces, sizes, train, kind, limit, ranks)


def _within(limit: int, split: PackedSplit, pack: int) -> Iterator[Slice]:
    """The pack whole; one of more tokens than a forward of this run has, cut between groups."""
    start = used = 0
    sizes = split.group_tokens(pack).tolist()
    for group, tokens in enumerate(sizes):
        if used and used + tokens > limit:
            yield Slice(pack, start, group)
            start, used = group, 0
        used += tokens
    yield Slice(pack, start, len(sizes))
