"""What each rank is fed: a step's groups once, as many backbone calls as the others, nothing from what fills up."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rmcli.config.sections import Config, TrainSection
from rmcli.model.attention.layout import BatchShape
from rmcli.model.forward import scores
from rmcli.model.losses import objective
from rmcli.model.network import flop_counter
from rmcli.packs.pack import pack
from rmcli.packs.reader import PackedSplit
from rmcli.packs.writer import PackWriter
from rmcli.parallel.mesh import MeshShape
from rmcli.records import PAIR, BatchKind, Comparison
from rmcli.train.evaluate import evaluate
from rmcli.train.feed import Feeder, StepFeed, shape_of_all
from rmcli.train.pieces import PackSizes
from rmcli.train.plan import Step, plan
from rmcli.train.scored import Scored
from rmcli.train.spread import Spread
from support.networks import random_group, tiny_model
from support.ranks import on_ranks

KINDS: tuple[BatchKind, ...] = ("packed", "single", "padded")
LIMIT = 120
TWO = MeshShape(2, 1)
CPU = torch.device("cpu")
TIE, THREE = (Comparison(0, 1, 0.5),), (Comparison(0, 1), Comparison(0, 2), Comparison(2, 1, 0.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 groups of 2 to 4 responses, with weights; focal leaves every fifth out."""
    generator = np.random.default_rng(3)
    kinds = [PAIR, THREE, PAIR, (Comparison(3, 1), Comparison(0, 2)), TIE]
    groups = [
        random_group(
            generator,
            int(generator.integers(0, 20)),
            [int(n) for n in generator.integers(1, 15, (2, 3, 2, 4, 2)[number % 5])],
            comparisons=kinds[number % 5],
            weight=(0.5, 1.0, 2.0)[number % 3],
            row_id=number,
        )
        for number in range(50)
    ]
    folder = tmp_path_factory.mktemp("ranks") / "data"
    with PackWriter(folder) as writer:
        for split in ("train", "eval"):
            writer.add_packs(split, pack(groups, LIMIT, shuffle=True, seed=0))
        writer.finish({})
    return folder


def network_for(kind: BatchKind, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    network = tiny_model("llama", dtype=dtype)
    if kind != "packed":
        network.set_attn_implementation("sdpa")
    return network


def feeders(data: Path, kind: BatchKind, ranks: int, shape: BatchShape | None = None) -> list[Feeder]:
    split, counter = PackedSplit(data, "train"), flop_counter(tiny_model("llama"))
    return [Feeder(split, "focal", kind, 0, CPU, counter, shape, rank, ranks) for rank in range(ranks)]


def steps_of(data: Path, kind: BatchKind, ranks: int, pairs_per_step: int = 16) -> list[Step]:
    sizes = PackSizes.of(PackedSplit(data, "train"), flop_counter(tiny_model("llama")))
    train = TrainSection.model_validate({"pairs_per_step": pairs_per_step, "batch_size": 3})
    return list(plan(sizes, train, kind, LIMIT, ranks))


def calls(feed: StepFeed) -> list[int]:
    """Of the backbone, by forward."""
    return [len(getattr(forward.batch, "conversations", (None,))) for forward in feed.forwards]


def gradients(network: torch.nn.Module, feeds: list[StepFeed]) -> dict[str, torch.Tensor]:
    """Added up over the feeds of all ranks."""
    network.zero_grad()
    loss = Config().loss
    for feed in feeds:
        for forward in feed.forwards:
            scores_S = forward.own(scores(network, forward.batch))
            sum(objective(scores_S, forward.targets, loss, feed.total_weight, feed.total_scores)).backward()
    return {name: weight.grad.clone() for name, weight in network.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_make_equally_many_calls_and_together_the_gradient_of_one(data, kind):
    network, filled = network_for(kind, torch.float64), 0
    for one, four in zip(steps_of(data, kind, 1), steps_of(data, kind, 4), strict=True):
        (alone,) = (feeder.build(one) for feeder in feeders(data, kind, 1))
        together = [feeder.build(four) for feeder in feeders(data, kind, 4)]
        assert len({tuple(calls(feed)) for feed in together}) == 1
        for feed in together:
            assert (feed.total_weight, feed.total_scores) == (alone.total_weight, alone.total_scores)
            assert sorted(feed.row_ids) == sorted(alone.row_ids)
        assert sum(feed.effective_flops for feed in together) == pytest.approx(alone.effective_flops, rel=1e-12)
        assert sum(f.num_scores for feed in together for f in feed.forwards) == alone.total_scores
        if kind != "padded":  # which fills rows up otherwise
            assert sum(feed.num_tokens for feed in together) == alone.num_tokens
        filled += sum(not forward.num_scores for feed in together for forward in feed.forwards)
        expected, actual = gradients(network, [alone]), gradients(network, together)
        for name, value in expected.items():
            assert (actual[name] - value).norm() <= 1e-6 * value.norm(), name  # Llama's norms compute in float32
    assert filled


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_forward_reaches_every_weight_and_adds_nothing(data, kind):
    """Ranks exchange gradients of each weight: one that a rank has none of would hang the others."""
    network = network_for(kind)
    step = next(step for step in steps_of(data, kind, 4, 2))
    (forward,) = next(
        feed.forwards for feed in (f.build(step) for f in feeders(data, kind, 4)) if not feed.forwards[0].num_scores
    )
    assert (forward.num_scores, forward.num_tokens) == (0, 0)
    scores_S = scores(network, forward.batch)
    assert len(scores_S) >= 2
    assert len(forward.own(scores_S)) == 0
    loss = sum(objective(forward.own(scores_S), forward.targets, Config().loss, 1.0, 1))
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in network.parameters())


def test_steps_and_rounds_that_no_rank_learns_from_have_no_forward(data):
    split = PackedSplit(data, "train")
    ties = {(p, g) for p in range(len(split)) for g, group in enumerate(split.groups(p)) if group.comparisons == TIE}
    seen = 0
    for step in steps_of(data, "packed", 2, 1):
        feeds = [feeder.build(step) for feeder in feeders(data, "packed", 2)]
        ((piece,),) = (forward for forwards in step.forwards for forward in forwards if forward)
        is_tie = (piece.pack, piece.start) in ties
        assert [len(feed.forwards) for feed in feeds] == ([0, 0] if is_tie else [1, 1])
        seen += is_tie
    assert seen == 10


def test_compiled_rows_have_one_shape_on_all_ranks(data):
    steps = steps_of(data, "packed", 4, 3)
    forwards = [forward for step in steps for rank in step.forwards for forward in rank]
    planned = shape_of_all(forwards, PackedSplit(data, "train"))
    for shape in (planned, BatchShape(8, 8)):  # which is far too small: it grows
        some = feeders(data, "packed", 4, shape)
        for step in steps:
            feeds = [feeder.build(step) for feeder in some]
            for side_by_side in zip(*(feed.forwards for feed in feeds), strict=True):
                assert len({forward.batch.layout.shape for forward in side_by_side}) == 1
        assert (some[0].shape == planned) == (shape is planned)


# --- evaluation ---


def evaluated(data: Path, kind: BatchKind, spread: Spread) -> dict[str, float]:
    config = Config.model_validate({"loss": {"loss_type": "ranking"}, "train": {"batch_size": 3}})
    return evaluate(network_for(kind), PackedSplit(data, "eval"), config, 0, kind, spread).figures


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_evaluate_as_one(data, kind):
    alone = evaluated(data, kind, Spread())
    assert alone["pairs"] == 60
    for sequence in (1, 2):
        first, second = on_ranks(2, evaluated, data, kind, Spread(TWO, sequence))
        assert first == second
        assert first.keys() == alone.keys()
        for name in ("pairs", "accuracy"):
            assert first[name] == alone[name]
        assert first == pytest.approx(alone, rel=1e-6, abs=1e-6)


def kept(data: Path, kind: BatchKind, spread: Spread) -> list[Scored]:
    config = Config.model_validate({"loss": {"loss_type": "ranking"}, "train": {"batch_size": 3}})
    return list(evaluate(network_for(kind), PackedSplit(data, "eval"), config, 0, kind, spread).scored)


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_is_kept_once_and_in_one_order_whoever_has_scored_it(data, kind):
    alone = kept(data, kind, Spread())
    assert [one.row_id for one in alone] == list(range(50))
    for sequence in (1, 2):
        first, second = on_ranks(2, kept, data, kind, Spread(TWO, sequence))
        assert second == []
        assert [one._replace(scores=()) for one in first] == [one._replace(scores=()) for one in alone]
        for here, there in zip(first, alone, strict=True):
            assert here.scores == pytest.approx(there.scores, abs=1e-5)


def evaluated_and_counted(data: Path, kind: BatchKind, spread: Spread) -> int:
    """Calls of the backbone."""
    network, count = network_for(kind), []
    network.model.register_forward_hook(lambda *_: count.append(1))
    config = Config.model_validate({"loss": {"loss_type": "ranking"}, "train": {"batch_size": 3}})
    evaluate(network, PackedSplit(data, "eval"), config, 0, kind, spread)
    return len(count)


@pytest.mark.parametrize(("kind", "most"), [("packed", 1), ("single", 1), ("padded", 1)])
def test_processes_that_evaluate_make_equally_many_calls(data, kind, most):
    first, second = on_ranks(2, evaluated_and_counted, data, kind, Spread(TWO))
    alone = evaluated_and_counted(data, kind, Spread())
    assert first == second
    assert alone / 2 <= first <= alone / 2 + most


def test_nothing_held_out_is_no_result_on_any_rank(data, tmp_path):
    with PackWriter(tmp_path / "none") as writer:
        writer.add_packs("train", pack(PackedSplit(data, "train").groups(0), LIMIT, shuffle=False, seed=0))
        writer.finish({})
    assert on_ranks(2, evaluated, tmp_path / "none", "packed", Spread(TWO)) == [{}, {}]
