"""The groups of a step on several ranks: the same groups as on one, equally many forwards, and busy ranks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rmcli.config.resolve import resolve
from rmcli.config.sections import TrainSection
from rmcli.model.flops import FlopCounter
from rmcli.records import BatchKind
from rmcli.train.balance import slowest_over_mean
from rmcli.train.describe import describe
from rmcli.train.job import build_job
from rmcli.train.pieces import PackSizes
from rmcli.train.plan import Step, has_several_forwards, largest_forward, num_steps, plan
from support.cli import run_cli

COUNTER = FlopCounter(1000, 0, 0, (None, None), 2, 4, 4, trimmed=False)
KINDS: tuple[BatchKind, ...] = ("packed", "single", "padded")
LIMIT = 256


class Lengths:
    """As a split knows them: 40 packs of up to 8 groups of 2 to 4 responses, some with most of the tokens."""

    def __init__(self) -> None:
        generator = np.random.default_rng(7)
        self.groups_per_pack = [int(number) for number in generator.integers(1, 9, 40)]
        self.numbers = generator.integers(2, 5, sum(self.groups_per_pack))
        self.prefixes = generator.integers(0, 60, len(self.numbers))
        self.responses = generator.integers(1, 40, self.numbers.sum())

    def conversation_lengths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.prefixes, self.numbers, self.responses


SIZES = PackSizes.of(Lengths(), COUNTER)  # type: ignore[arg-type]
ALL_GROUPS = [(pack, group) for pack, tokens in enumerate(SIZES.group_tokens) for group in range(len(tokens))]
PAIRS_PER_STEP, BATCHES = {"pairs_per_step": 18}, {"batch_size": 2, "accumulative_counts": 2}


def steps_of(kind: BatchKind, ranks: int, **values: int) -> list[Step]:
    return list(plan(SIZES, TrainSection.model_validate(values), kind, LIMIT, ranks))


def groups_of(step: Step) -> list[tuple[int, int]]:
    forwards = [forward for rank in step.forwards for forward in rank]
    return sorted((p.pack, group) for forward in forwards for p in forward for group in range(p.start, p.stop))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4, 7])
@pytest.mark.parametrize("values", [PAIRS_PER_STEP, {"pairs_per_step": 3}, BATCHES, {}])
def test_every_group_runs_once_per_epoch_in_equally_many_forwards_of_each_rank(kind, ranks, values):
    train = TrainSection.model_validate({"max_epochs": 2, **values})
    steps = list(plan(SIZES, train, kind, LIMIT, ranks))
    assert len(steps) == num_steps(SIZES, train, kind, ranks)
    for epoch in (0, 1):
        assert sorted(g for step in steps if step.epoch == epoch for g in groups_of(step)) == ALL_GROUPS
    for step in steps:
        assert len(step.forwards) == ranks
        assert len({len(forwards) for forwards in step.forwards}) == 1
        rounds = list(zip(*step.forwards, strict=True))
        assert all(any(forwards) for forwards in rounds)  # none in which all wait for nothing
        assert all(all(forwards) for forwards in rounds[:-1]) or kind == "packed"


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_per_step_are_the_same_groups_on_any_number_of_ranks(kind):
    one = [groups_of(step) for step in steps_of(kind, 1, **PAIRS_PER_STEP)]
    assert [len(step) for step in one[:-1]] == [18] * (len(one) - 1)
    for ranks in (2, 4, 64):
        assert [groups_of(step) for step in steps_of(kind, ranks, **PAIRS_PER_STEP)] == one


def test_a_forward_holds_no_more_than_it_may():
    def forwards(kind: BatchKind, **values: int) -> list:
        return [one for step in steps_of(kind, 4, **values) for rank in step.forwards for one in rank]

    assert max(SIZES.tokens(one, "packed") for one in forwards("packed", pairs_per_step=100)) <= LIMIT
    assert {len(one) for one in forwards("packed", **BATCHES)} == {2}
    assert max(len(one) for one in forwards("padded", batch_size=3, pairs_per_step=18)) == 3
    assert {sum(piece.stop - piece.start for piece in one) for one in forwards("single", **BATCHES)} <= {0, 1}


def test_a_group_longer_than_a_forward_has_one_to_itself():
    (step,) = plan(SIZES, TrainSection(pairs_per_step=10**6, max_steps=1), "packed", 32, 2)
    too_long = [one for rank in step.forwards for one in rank if SIZES.tokens(one, "packed") > 32]
    assert too_long
    assert all(len(one) == 1 for one in too_long)


def test_steps_with_fewer_groups_than_ranks_leave_ranks_empty():
    for kind in KINDS:
        for step in steps_of(kind, 4, pairs_per_step=3):
            assert sorted(len(rank) for rank in step.forwards) == [1] * 4
            assert sorted(map(len, (forwards[0] for forwards in step.forwards)))[-len(groups_of(step)) :] == (
                [1] * len(groups_of(step))
            )
            assert sum(forwards == ((),) for forwards in step.forwards) == 4 - len(groups_of(step))


def test_conversations_run_alone_are_as_many_in_each_forward_as_can_be():
    """So that few have to be filled up: the numbers of responses of one step's rounds fall."""
    for step in steps_of("single", 4, **PAIRS_PER_STEP):
        rounds = [[SIZES.rows(one) for one in forwards if one] for forwards in zip(*step.forwards, strict=True)]
        assert all(min(before) >= max(after) for before, after in pairwise(rounds))


@pytest.mark.parametrize(("kind", "limit"), [("packed", 1.02), ("single", 1.2), ("padded", 1.12)])
def test_a_small_skewed_set_keeps_four_ranks_busy(kind, limit):
    """Forwards of one rank dealt out in turn do not."""
    steps = [step.forwards for step in steps_of(kind, 4, pairs_per_step=64)]
    assert 1 <= slowest_over_mean(steps, SIZES, kind) < limit
    in_turn = [
        tuple(tuple(one[rank::4]) for rank in range(4))
        for step in steps_of(kind, 1, pairs_per_step=64)
        for one in [[*step.forwards[0], *[()] * (-len(step.forwards[0]) % 4)]]
    ]
    assert slowest_over_mean(in_turn, SIZES, kind) > limit + 0.05


def test_the_largest_forward_is_that_of_a_rank():
    config = resolve("tiny", settings=["train.pairs_per_step=18", f"data.max_packed_length={LIMIT * 100}"]).config
    one, four = (largest_forward(config, SIZES, "packed", ranks) for ranks in (1, 4))  # the longest groups, a share
    assert one / 6 < four < one / 3
    assert not has_several_forwards(config, SIZES, "packed", 4)
    several = resolve("tiny", settings=["train.pairs_per_step=18", f"data.max_packed_length={LIMIT}"]).config
    assert has_several_forwards(several, SIZES, "packed", 2)


def test_a_plan_tells_how_busy_its_ranks_are(cli):
    assert cli("prepare", "tasks:200", "--preset", "tiny", "-o", "data").code == 0
    (alone, four) = (
        describe(build_job(resolve("tiny"), Path("data"), Path("run"), processes=number)) for number in (1, 4)
    )
    told = {name: four.pop(name) for name in ("processes", "data_parallel_ranks", "slowest_over_mean", "spread")}
    assert four.keys() == alone.keys()
    assert (told["processes"], told["data_parallel_ranks"]) == (4, 4)
    assert 1 < told["slowest_over_mean"] < 1.05
    assert (four["steps"], four["pairs_per_step"]) == (alone["steps"], alone["pairs_per_step"])
    assert four["tokens_per_forward"] < alone["tokens_per_forward"]


# --- real data ---

# 1.00 to 1.01 packed; the limit of the issue is 1.1. By rounds: ranks wait for each other in each forward.
BUSY = {"hh_rlhf_harmless": 1.01, "gsm8k_solution_pairs": 1.01, "finegrained_qa_4way": 1.02}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUSY)
def test_four_ranks_are_busy_with_real_data(name, tmp_path, real_data, gguf):
    settings = [f"model.pretrained_model_name_or_path={gguf}", "train.pairs_per_step=64"]
    prepared = run_cli("prepare", real_data / f"{name}.jsonl.gz", "-o", tmp_path / "data", "-s", settings[0])
    assert prepared.code == 0, prepared.stderr
    job = build_job(resolve(None, settings=settings), tmp_path / "data", Path("run"), processes=4)
    told = describe(job)
    assert (told["processes"], told["data_parallel_ranks"]) == (4, 4)
    assert 1 <= told["slowest_over_mean"] <= BUSY[name]
    for kind in ("single", "padded"):
        steps = plan(job.sizes, job.config.train, kind, job.config.data.max_packed_length, 4)
        assert slowest_over_mean((step.forwards for step in steps), job.sizes, kind) <= 1.1
    as_one_rank_fills_them = [
        (step.forwards[0], ((),), ((),), ((),)) for step in plan(job.sizes, job.config.train, "packed", 10**6)
    ]
    assert slowest_over_mean(as_one_rank_fills_them, job.sizes, "packed") == 4
