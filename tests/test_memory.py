"""Ten million short rows in two gigabytes: the slope of prepare's memory between two sizes."""

import sys

import pytest
from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))

import prepare_memory


@pytest.mark.slow  # three minutes
def test_ten_million_short_rows_need_less_than_two_gigabytes():
    small, large = 100_000, 500_000
    (at_small, *_), (at_large, *_) = prepare_memory.peaks(small), prepare_memory.peaks(large)
    slope = (at_large - at_small) / (large - small)
    assert 20 < slope < 160  # bytes a row: the set of seen rows alone takes 24
    assert at_large + slope * (10_000_000 - large) < 2e9
