"""Scored groups as answers and comparisons between them, by hand."""

import numpy as np

from rmcli.metrics.judged import Judged
from rmcli.records import Comparison, TokenGroup


def group(lengths: list[int], *comparisons: Comparison) -> TokenGroup:
    responses = tuple(np.arange(length, dtype=np.int32) for length in lengths)
    return TokenGroup(np.arange(3, dtype=np.int32), responses, comparisons=comparisons)


PAIR = (group([4, 2], Comparison(0, 1)), [1.5, -0.5])
THREE = (group([1, 2, 3], Comparison(0, 1, 0.2), Comparison(0, 2, 0.5), Comparison(2, 1)), [0.0, 0.0, 2.0])


def test_a_pair_is_two_answers_and_one_comparison():
    judged = Judged.of([PAIR])
    assert judged.scores.tolist() == [1.5, -0.5]
    assert judged.tokens.tolist() == [4, 2]
    assert (judged.margins.tolist(), judged.right.tolist(), judged.longer_by.tolist()) == ([2.0], [1.0], [2])


def test_a_label_below_one_half_turns_the_comparison_round_and_a_tie_is_none():
    judged = Judged.of([PAIR, THREE])
    assert judged.better.tolist() == [0, 3, 4]
    assert judged.worse.tolist() == [1, 2, 3]
    assert judged.labels.tolist() == [1.0, 0.8, 1.0]
    assert judged.groups.tolist() == [0, 1, 1]
    assert judged.num_ties == 1
    assert judged.right.tolist() == [1.0, 0.5, 1.0]


def test_parts_together_are_the_whole():
    whole, parts = Judged.of([PAIR, THREE, PAIR]), [Judged.of([PAIR, THREE]), Judged.of([]), Judged.of([PAIR])]
    joined = Judged.joined(parts)
    for name in ("scores", "tokens", "better", "worse", "labels", "groups"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist()
        assert getattr(joined, name).dtype == getattr(whole, name).dtype
    assert joined.num_ties == whole.num_ties == 1


def test_only_some_comparisons_are_left_and_all_answers():
    judged = Judged.of([PAIR, THREE])
    some = judged.only(judged.longer_by < 2)
    assert (some.better.tolist(), some.groups.tolist(), len(some.scores)) == ([3, 4], [1, 1], 5)
