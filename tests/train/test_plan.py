"""Which groups run in which step and forward of one rank."""

import hashlib
import json

import numpy as np
import pytest

from rmcli.config.sections import TrainSection
from rmcli.train.pieces import PackSizes
from rmcli.train.plan import num_steps, plan

# --- the plan ---

SIZES = PackSizes([np.array([100, 20, 30]), np.array([50]), np.array([10] * 7), np.array([90, 90])])


def train_section(**values) -> TrainSection:
    return TrainSection.model_validate(values)


def groups_seen(steps) -> list[tuple[int, int]]:
    return [
        (piece.pack, group)
        for step in steps
        for rank in step.forwards
        for forward in rank
        for piece in forward
        for group in range(piece.start, piece.stop)
    ]


ALL_GROUPS = [(row, group) for row, tokens in enumerate(SIZES.group_tokens) for group in range(len(tokens))]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"batch_size": 3},
        {"batch_size": 2, "accumulative_counts": 2},
        {"pairs_per_step": 4},
        {"pairs_per_step": 100},
    ],
)
@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_every_group_runs_once_per_epoch(values, kind):
    train = train_section(max_epochs=2, **values)
    steps = list(plan(SIZES, train, kind, 128))
    assert len(steps) == num_steps(SIZES, train, kind)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    for epoch in (0, 1):
        assert sorted(groups_seen(step for step in steps if step.epoch == epoch)) == ALL_GROUPS


def test_pairs_per_step_is_exact_and_forwards_stay_within_their_tokens():
    steps = list(plan(SIZES, train_section(pairs_per_step=4), "packed", 128))
    assert [len(groups_seen([step])) for step in steps] == [4, 4, 4, 1]
    for step in steps:
        for forward in step.forwards[0]:
            tokens = [SIZES.group_tokens[piece.pack][piece.start : piece.stop].sum() for piece in forward]
            assert sum(tokens) <= 128 or len(tokens) == 1


def test_batch_size_and_accumulation_count_rows_and_forwards():
    (step, last) = plan(SIZES, train_section(batch_size=1, accumulative_counts=3), "packed", 128)
    assert [len(forward) for forward in step.forwards[0]] == [1, 1, 1]
    assert [len(forward) for forward in last.forwards[0]] == [1]
    padded = next(plan(SIZES, train_section(batch_size=5), "padded", 128))
    assert [len(forward) for forward in padded.forwards[0]] == [5]
    assert all(piece.stop - piece.start == 1 for piece in padded.forwards[0][0])


def test_order_changes_with_epoch_and_seed_and_nothing_else():
    def order(**values) -> list:
        return [groups_seen([step]) for step in plan(SIZES, train_section(pairs_per_step=3, **values), "packed", 128)]

    assert order() == order()
    assert order() != order(seed=1)
    two = order(max_epochs=2)
    assert two[:5] == order()
    assert two[5:] != two[:5]


def test_max_steps_ends_the_run_early():
    train = train_section(pairs_per_step=2, max_steps=3)
    assert len(list(plan(SIZES, train, "packed", 128))) == num_steps(SIZES, train, "packed") == 3


# Of plans made when there was one rank only: golden losses and runs that go on stand on them.
HASHES = {
    ("pairs_per_step", "packed"): "dc937a944d46992b",
    ("pairs_per_step", "single"): "dc937a944d46992b",
    ("pairs_per_step", "padded"): "9249a8a900a7f5fc",
    ("batch_size", "packed"): "31407e4b328a4402",
    ("batch_size", "single"): "31407e4b328a4402",
    ("batch_size", "padded"): "b3436636066e8169",
    ("neither", "packed"): "e6ca14f23d3b4450",
    ("neither", "padded"): "65a209b333e93160",
}
SETTINGS = {"pairs_per_step": {"pairs_per_step": 16}, "batch_size": {"batch_size": 2, "accumulative_counts": 3}}


@pytest.mark.parametrize(("settings", "kind"), HASHES)
def test_the_plan_of_one_rank_is_what_it_was(settings, kind):
    generator = np.random.default_rng(0)
    sizes = PackSizes([generator.integers(3, 120, int(generator.integers(1, 12))) for _ in range(40)])
    steps = plan(sizes, train_section(max_epochs=2, **SETTINGS.get(settings, {})), kind, 128)
    told = [
        [
            step.number,
            step.epoch,
            [[[[p.pack, p.start, p.stop] for p in one] for one in rank] for rank in step.forwards],
        ]
        for step in steps
    ]
    assert hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16] == HASHES[settings, kind]
