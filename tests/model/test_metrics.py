"""Metrics of pairs: added forward by forward, merged, and summed over processes."""

import torch

from rmcli.model.metrics import PairMetrics
from rmcli.parallel import world
from support.ranks import on_ranks

GENERATOR = torch.Generator().manual_seed(0)
FORWARDS = [torch.randn(2 * number, generator=GENERATOR) * 3 for number in (3, 1, 40, 7, 2, 11, 5)]
FORWARDS[1][1] = FORWARDS[1][0]  # a tie


def add(metrics: PairMetrics, scores: torch.Tensor) -> None:
    each = torch.arange(len(scores))
    metrics.add(scores, each[::2], each[1::2])


def of(forwards: list[torch.Tensor]) -> PairMetrics:
    metrics = PairMetrics()
    for scores in forwards:
        add(metrics, scores)
    return metrics


def numbers(metrics: PairMetrics) -> dict[str, float]:
    return {"pairs": int(metrics.num_pairs), "scores": int(metrics.num_scores), **metrics.result()}


def test_figures_by_hand():
    result = numbers(of([torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([5.0, 5.0])]))
    assert result == {
        "pairs": 3,
        "scores": 6,
        "accuracy": 0.5,  # one right, one wrong, one tie
        "margin": (1 - 3 + 0) / 3,
        "score_mean": 16 / 6,
        "score_min": 0.0,
        "score_max": 5.0,
    }


def test_merged_is_bit_by_bit_as_added():
    """Float32 sums depend on their order: a step's forwards summed up first would differ."""
    one_by_one, merged = of(FORWARDS * 60), PairMetrics()
    for start in range(0, len(FORWARDS * 60), 5):
        merged.merge(of((FORWARDS * 60)[start : start + 5]))
    assert numbers(merged) == numbers(one_by_one)
    by_steps = sum((of((FORWARDS * 60)[at : at + 5]).total()["margin"] for at in range(0, 420, 5)), torch.zeros(()))
    assert by_steps != one_by_one.total()["margin"]


def test_a_forward_without_scores_changes_nothing():
    assert numbers(of([FORWARDS[0], torch.empty(0), FORWARDS[2]])) == numbers(of([FORWARDS[0], FORWARDS[2]]))


def test_one_process_sums_up_to_itself():
    metrics = of(FORWARDS)
    assert metrics.summed("cpu") is metrics


def summed_here(shares: list[list[int]], share: float) -> dict[str, float]:
    own = of([FORWARDS[number] for number in shares[world.rank()]])
    return numbers(own.summed("cpu", share))


def check(shares: list[list[int]], share: float, expected: dict[str, float]) -> None:
    first, second = on_ranks(2, summed_here, shares, share)
    assert first == second
    exact = ("pairs", "scores", "accuracy", "score_min", "score_max")
    assert {name: first[name] for name in exact} == {name: expected[name] for name in exact}
    assert abs(first["margin"] - expected["margin"]) < 1e-6
    assert abs(first["score_mean"] - expected["score_mean"]) < 1e-6


def test_two_processes_sum_up_to_one_that_had_all():
    check([[0, 2, 4], [1, 3, 5, 6]], 1.0, numbers(of(FORWARDS)))
    check([list(range(7)), []], 1.0, numbers(of(FORWARDS)))


def test_what_two_processes_count_of_the_same_scores_counts_once():
    check([[0, 1, 2], [0, 1, 2]], 0.5, numbers(of(FORWARDS[:3])))
