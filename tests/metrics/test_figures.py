"""Figures of scores against scipy, scikit-learn, and numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from rmcli.metrics.calibration import calibration, fitted_temperature, log_loss, sigmoid
from rmcli.metrics.figures import figures, spread
from rmcli.metrics.intervals import accuracy, mean_interval, paired_bootstrap
from rmcli.metrics.judged import Judged
from rmcli.metrics.length import length, spearman


def judged(margins: list[float], lengths: list[tuple[int, int]] | None = None, groups=None, labels=None) -> Judged:
    """A pair per margin: the worse answer scores 0, the better one its margin."""
    count = len(margins)
    scores = np.array([[margin, 0.0] for margin in margins]).reshape(-1)
    tokens = np.array(lengths or [(1, 1)] * count, dtype=np.int64).reshape(-1)
    better = np.arange(count) * 2
    return Judged(
        scores,
        tokens,
        better,
        better + 1,
        np.ones(count) if labels is None else np.array(labels),
        np.arange(count) if groups is None else np.array(groups),
    )


@pytest.fixture
def drawn() -> Judged:
    """2,000 margins of a model that is too sure of itself by a factor of 2."""
    generator = np.random.default_rng(3)
    margins = generator.normal(1.0, 2.0, 2000)
    right = generator.random(2000) < sigmoid(np.abs(margins) / 2)
    margins = np.where(right, np.abs(margins), -np.abs(margins))
    lengths = generator.integers(1, 300, (2000, 2))
    return judged(margins.tolist(), [(int(one), int(other)) for one, other in lengths])


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(3).normal(0.3, 1.0, 40)
    expected = stats.norm.interval(stats.norm.cdf(1.96) * 2 - 1, values.mean(), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, abs=1e-12)
    assert mean_interval(values[:1]) is None


def test_wilsons_interval_is_scipys():
    found = accuracy(judged([1.0] * 17 + [-1.0] * 6))
    expected = stats.binomtest(17, 23).proportion_ci(0.95, method="wilson")
    assert found["pairs"] == 23
    assert found["accuracy"] == 17 / 23
    assert found["interval"] == pytest.approx([expected.low, expected.high], abs=2e-5)  # z is 1.96, not 1.95996


def test_a_tie_of_scores_counts_one_half():
    assert accuracy(judged([1.0, 0.0, -1.0, 0.0]))["accuracy"] == 0.5


def test_comparisons_of_one_prompt_count_once_in_the_interval():
    alone, together = accuracy(judged([1.0, -1.0] * 6)), accuracy(judged([1.0, -1.0] * 6, groups=[0, 0, 1, 1] * 3))
    expected = stats.binomtest(1, 2).proportion_ci(0.95, method="wilson")
    assert alone["accuracy"] == together["accuracy"] == 0.5
    assert together["interval"] == pytest.approx([expected.low, expected.high], abs=2e-5)


def test_brier_and_log_loss_are_scikit_learns(drawn):
    found, certain = calibration(drawn), np.ones(drawn.num_pairs)
    probability = 1 / (1 + np.exp(-drawn.margins))
    assert found["brier"] == pytest.approx(brier_score_loss(certain, probability, labels=[0, 1]), abs=1e-12)
    assert found["log_loss"] == pytest.approx(sklearn_log_loss(certain, probability, labels=[0, 1]), abs=1e-12)


def test_log_loss_of_uncertain_labels_by_hand():
    margins, labels = np.array([math.log(3)]), np.array([0.75])  # sigmoid is 3/4
    assert log_loss(margins, labels) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), abs=1e-12)
    assert calibration(judged([math.log(3)], labels=[0.75]))["brier"] == pytest.approx(0.0, abs=1e-12)


def test_huge_margins_overflow_nothing():
    found = calibration(judged([1e4, -1e4]))
    assert (found["log_loss"], found["brier"]) == (5e3, 0.5)


def test_the_temperature_is_scikit_learns_slope(drawn):
    """Logistic regression without intercept on (margin, 1) and (-margin, 0) fits 1 / temperature."""
    margins = drawn.margins
    both = np.concatenate([margins, -margins])[:, None]
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    fit.fit(both, [1] * len(margins) + [0] * len(margins))
    found = calibration(drawn)
    assert found["temperature"] == pytest.approx(1 / fit.coef_[0, 0], rel=1e-4)
    assert found["temperature"] == pytest.approx(2.0, rel=0.1)  # what it was drawn with
    assert found["log_loss_at_temperature"] < found["log_loss"]


@pytest.mark.parametrize("margins", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1.0, -1.0]])
def test_there_is_no_temperature_where_no_scale_is_best(margins):
    assert fitted_temperature(np.array(margins), np.ones(len(margins))) is None


def test_the_reliability_curve_by_hand():
    """sigmoid(ln 3) = 0.75, in the bin 0.75 to 0.80: of four pairs three are right. A margin of 0 is in the first."""
    found = calibration(judged([math.log(3) + 1e-9] * 3 + [-math.log(3) - 1e-9] + [0.0]))
    first, second = found["curve"]
    assert (first["low"], first["pairs"], first["confidence"], first["accuracy"]) == (0.5, 1, 0.5, 0.5)
    assert (second["low"], second["high"], second["pairs"], second["accuracy"]) == (0.75, 0.8, 4, 0.75)
    assert second["confidence"] == pytest.approx(0.75, abs=1e-8)
    assert found["ece"] == pytest.approx(0.0, abs=1e-8)
    sure = calibration(judged([math.log(9)] * 2 + [-math.log(9)] * 2))  # 0.9 sure, 1/2 right
    assert sure["ece"] == pytest.approx(0.4, abs=1e-12)


def test_the_curve_counts_soft_labels_as_they_are():
    """sigmoid(ln 3) = 0.75 with labels of 0.75: nothing is wrong; where the worse one is preferred, 0.25 is right."""
    found = calibration(judged([math.log(3)] * 4, labels=[0.75] * 4))
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    (bin,) = calibration(judged([-math.log(3) - 1e-9] * 4, labels=[0.75] * 4))["curve"]
    assert bin["accuracy"] == pytest.approx(0.25, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_a_temperature_is_found_at_any_scale(scale):
    margins = np.array([1.0, 1.0, 1.0, -1.0]) * scale
    expected = scale / math.log(3)  # three of four are right: sigmoid is 0.75 there
    assert fitted_temperature(margins, np.ones(4)) == pytest.approx(expected, rel=1e-6)


def test_spearman_is_scipys(drawn):
    expected = stats.spearmanr(drawn.scores, drawn.tokens).statistic
    assert spearman(drawn.scores, drawn.tokens) == pytest.approx(expected, abs=1e-12)
    assert spearman(np.array([1.0, 1.0]), np.array([1, 2])) is None


def test_length_figures_by_hand():
    found = length(judged([1.0, 1.0, -1.0, -1.0], [(20, 10), (10, 20), (100, 95), (30, 30)]))
    assert found["longer_wins"] == (1 + 0 + 1 + 0.5) / 4
    assert (found["equal_length"]["pairs"], found["equal_length"]["accuracy"]) == (2, 0.0)
    assert (found["better_is_longer"]["pairs"], found["better_is_longer"]["accuracy"]) == (2, 0.5)
    assert (found["better_is_shorter"]["pairs"], found["better_is_shorter"]["accuracy"]) == (1, 1.0)


def test_the_paired_bootstrap_is_scipys(drawn):
    ours, theirs = drawn.right, np.roll(drawn.right, 7)
    found = paired_bootstrap(ours, theirs, drawn.groups)
    expected = stats.bootstrap(
        (ours - theirs,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found["difference"] == pytest.approx(float(np.mean(ours - theirs)), abs=1e-12)
    assert found["interval"] == pytest.approx([expected.low, expected.high], abs=4e-3)
    assert found == paired_bootstrap(ours, theirs, drawn.groups)


def test_whole_prompts_are_drawn():
    """Ten pairs of one prompt are one draw: the interval is that of two prompts, all or nothing."""
    ours, theirs = np.array([1.0] * 10 + [0.0] * 10), np.full(20, 0.5)
    found = paired_bootstrap(ours, theirs, np.array([0] * 10 + [1] * 10))
    assert (found["difference"], found["interval"], found["favours_ours"]) == (
        0.0,
        [-0.5, 0.5],
        pytest.approx(0.5, abs=0.03),
    )


def test_zero_is_an_edge_of_the_histogram_and_nothing_falls_out():
    generator = np.random.default_rng(0)
    for scale in (1e-6, 0.3, 1.0, 7.0, 1e5):
        values = generator.normal(0.2, scale, 999)
        histogram = spread(values)["histogram"]
        assert sum(histogram["counts"]) == 999
        assert (0.0 in histogram["edges"]) == (scale > 1e-6)  # all lie above 0 there
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1 <= 33
    assert sum(spread(np.zeros(3))["histogram"]["counts"]) == 3


def test_all_figures_are_json_and_nothing_is_an_empty_one(drawn):
    for one in (drawn, Judged.of([])):
        assert json.loads(json.dumps(figures(one), allow_nan=False))["pairs"] == one.num_pairs
    empty = figures(Judged.of([]))
    assert (empty["accuracy"], empty["mean_margin"], empty["calibration"], empty["length"]) == (None, None, {}, {})


def test_scores_beyond_the_bound_are_told():
    assert figures(judged([6.0, 1.0]))["scores"]["beyond_bound"] == 0.25  # of the answers
