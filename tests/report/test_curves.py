"""Lines of many points."""

from statistics import fmean

from rmcli.report.plots.curves import MOST, Curve, curves, joined


def test_of_many_points_neighbours_become_one():
    points = [(step, float(step % 3)) for step in range(1, 3 * MOST + 1)]
    assert joined(points, fmean) == [(3 * number, 1.0) for number in range(1, MOST + 1)]
    assert {value for _, value in joined(points, min)} == {0.0}
    assert {value for _, value in joined(points, max)} == {2.0}
    few = points[:MOST]
    assert joined(few, fmean) == few
    assert len(joined(points[: MOST + 1], fmean)) == 251  # two each, and the last one alone


def test_the_caption_says_so():
    points = [(step, 1.0) for step in range(1_001)]
    drawn = curves({"a": Curve(points, 0)}, "a", "a", "What it is.", (points, points))
    assert drawn.caption == "What it is. A point is the mean of 3 in a row."
    assert len(drawn.svg) < 50_000
    assert curves({"a": Curve(points[:9], 0)}, "a", "a", "What it is.").caption == "What it is."
    assert curves({"a": Curve([], 0)}, "a", "a", "") is None
