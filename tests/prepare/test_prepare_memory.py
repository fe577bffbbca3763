"""Ten million short rows in two gigabytes: the slope of prepare's memory between two sizes."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.places import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))

import prepare_memory


@pytest.mark.slow  # four minutes
def test_ten_million_short_rows_need_less_than_two_gigabytes():
    small, large = 100_000, 1_000_000  # between smaller ones what is bounded still grows
    with ThreadPoolExecutor(2) as pool:  # processes of their own
        (at_small, *_), (at_large, *_) = pool.map(prepare_memory.peaks, (small, large))
    slope = (at_large - at_small) / (large - small)
    assert 20 < slope < 160  # bytes a row: the set of seen rows alone takes 24
    assert at_large + slope * (10_000_000 - large) < 2e9
