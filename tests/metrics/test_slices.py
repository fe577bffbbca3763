"""Comparisons some at a time: which are counted where, by hand."""

import numpy as np
import pytest

from rmcli.metrics.intervals import wilson_interval
from rmcli.metrics.judged import Judged
from rmcli.metrics.slices import by_length_difference, by_value
from rmcli.records import Comparison, TokenGroup


def judged(*pairs: tuple[int, int, float]) -> Judged:
    """Pairs, each of a prompt of its own: tokens of the better and the worse answer, and the margin."""
    groups = [
        (
            TokenGroup(
                np.arange(2, dtype=np.int32),
                (np.zeros(better, np.int32), np.zeros(worse, np.int32)),
                comparisons=(Comparison(0, 1),),
            ),
            [margin, 0.0],
        )
        for better, worse, margin in pairs
    ]
    return Judged.of(groups)


def test_each_bin_of_length_holds_its_upper_edge():
    differences = [-201, -200, -199, -50, -49, -10, -9, 0, 10, 11, 50, 51, 200, 201]
    found = by_length_difference(judged(*((300 + by, 300, 1.0) for by in differences)))
    assert [(one["value"], one["pairs"]) for one in found] == [
        ("up to -200", 2),
        ("-200 to -50", 2),
        ("-50 to -10", 2),
        ("-10 to 10", 3),
        ("10 to 50", 2),
        ("50 to 200", 2),
        ("above 200", 1),
    ]


def test_a_bin_has_its_own_accuracy_and_margin_and_one_without_pairs_is_left_out():
    found = by_length_difference(judged((5, 5, 2.0), (5, 6, -1.0), (90, 10, 0.5)))
    assert found == [
        {
            "value": "-10 to 10",
            "pairs": 2,
            "accuracy": 0.5,
            "interval": pytest.approx([*wilson_interval(0.5, 2)]),
            "mean_margin": 0.5,
        },
        {
            "value": "50 to 200",
            "pairs": 1,
            "accuracy": 1.0,
            "interval": pytest.approx([*wilson_interval(1.0, 1)]),
            "mean_margin": 0.5,
        },
    ]


def test_values_of_any_kind_come_in_order_numbers_before_texts():
    pairs = judged(*((1, 1, margin) for margin in (1.0, -1.0, 3.0, 0.0, 1.0, 1.0, 1.0)))
    found = by_value(pairs, ["b", np.int64(2), "a", 10, True, None, 2.0])
    assert [(one["value"], one["pairs"], one["accuracy"]) for one in found] == [
        (2, 2, 0.5),
        (10, 1, 0.5),
        ("a", 1, 1.0),
        ("b", 1, 1.0),
        (True, 1, 1.0),
        (None, 1, 1.0),
    ]
    assert type(found[0]["value"]) in (int, float)  # as JSON takes it


def test_the_interval_counts_prompts():
    group = TokenGroup(
        np.arange(2, dtype=np.int32),
        tuple(np.zeros(n, np.int32) for n in (3, 2, 1)),
        comparisons=(Comparison(0, 1), Comparison(1, 2)),
    )
    one = by_value(Judged.of([(group, [2.0, 1.0, 0.0])]), ["x", "x"])[0]
    assert (one["pairs"], one["interval"]) == (2, pytest.approx([*wilson_interval(1.0, 1)]))


def test_nothing_has_no_slice():
    assert by_length_difference(Judged.of([])) == by_value(Judged.of([]), []) == []


def test_an_interval_of_a_share_has_no_end_outside_0_and_1():
    for count in range(1, 2000):
        assert wilson_interval(0.0, count)[0] >= 0, count
        assert wilson_interval(1.0, count)[1] <= 1, count
