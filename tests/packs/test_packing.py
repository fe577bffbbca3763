"""Packs of real groups: how full, how fast, and that no group is ever split or lost."""

import time
from collections import Counter
from itertools import cycle, islice, pairwise

import numpy as np
import pytest

from rmcli.config.resolve import resolve
from rmcli.errors import Skip
from rmcli.packs.pack import WINDOW, best_fit_decreasing, pack
from rmcli.records import TokenGroup
from rmcli.rows import sources
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer

PACK_TOKENS = 8192


@pytest.fixture(scope="module")
def hh_groups(gguf, real_data) -> list[TokenGroup]:
    """The pairs of the real HH file in tokens of SmolLM2."""
    config = resolve(None, settings=[f"model.pretrained_model_name_or_path={gguf}"]).config
    function = find_map_function("hh_rlhf")
    groups = []
    for row in sources.read_rows([str(real_data / "hh_rlhf_harmless.jsonl.gz")], "train"):
        try:
            groups.append(apply(function, row.value, "hh"))
        except Skip:
            continue
    encoder = Encoder(load_tokenizer(config.model), config.data.max_length, config.data.overlong)
    encoded = [tokens for tokens in encoder.encode(groups) if isinstance(tokens, TokenGroup)]
    assert len(encoded) == 1808
    return encoded


def pack_windows(groups: list[TokenGroup], seed: int) -> list[list[int]]:
    """The tokens of the groups of each row, window by window as prepare packs them."""
    rows = []
    for number, start in enumerate(range(0, len(groups), WINDOW)):
        for row in pack(groups[start : start + WINDOW], PACK_TOKENS, shuffle=True, seed=seed + number):
            rows.append([group.num_tokens for group in row.groups])
    return rows


def fill(rows: list[list[int]]) -> float:
    return sum(map(sum, rows)) / (PACK_TOKENS * len(rows))


def test_real_pairs_repeated_to_100k_groups_fill_rows_of_8k_to_99_percent(hh_groups):
    groups = list(islice(cycle(hh_groups), 100_000))
    rows = pack_windows(groups, seed=0)
    assert fill(rows) >= 0.99
    assert max(map(sum, rows)) <= PACK_TOKENS
    # no group is split, lost or doubled: the multiset of lengths is what went in
    assert Counter(length for row in rows for length in row) == Counter(group.num_tokens for group in groups)
    assert pack_windows(groups, seed=0) == rows
    assert pack_windows(groups, seed=1) != rows


@pytest.mark.slow
@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_time_to_pack(hh_groups, count):
    groups = list(islice(cycle(hh_groups), count))
    start = time.perf_counter()
    rows = pack_windows(groups, seed=0)
    seconds = time.perf_counter() - start
    print(f"{count:,} groups: {seconds:.1f} s, {len(rows):,} rows, {fill(rows):.2%} full")
    assert fill(rows) >= 0.99
    assert seconds < count * 60e-6  # ten times what it takes: quadratic packing would need hours


@pytest.mark.parametrize("seed", range(50))
def test_any_lengths_are_packed_whole_and_no_two_rows_could_be_one(seed):
    generator = np.random.default_rng(seed)
    capacity = int(generator.integers(1, 300))
    highest = int(generator.integers(1, capacity + 1))
    lengths = generator.integers(1, highest + 1, int(generator.integers(0, 400))).tolist()
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in members) for members in bins]
    assert all(load <= capacity for load in loads)
    # a row is begun only when no other holds the next group, which is at most `highest`
    assert all(load > capacity - highest for load in loads[:-1])
    # and no two rows could have been one
    assert all(one + other > capacity for one, other in pairwise(sorted(loads)))
