"""Prompts that are nearly the same, among token ids: exact Jaccard similarity of their 3-token shingles, in numpy.

Two prompts with similarity >= t share one of their rarest shingles: of a set of n, one of the n - ceil(t * n) + 1
rarest. Only those are looked up, then each candidate is compared in full, so nothing is missed and nothing is
estimated (prefix filtering: Chaudhuri, Ganti and Kaushik, ICDE 2006; Bayardo, Ma and Srikant, WWW 2007).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE = 3  # tokens
THRESHOLD = 0.6  # one token changed among n distinct shingles gives (n - 3) / (n + 3): found from n = 12 on
MIN_SHINGLES = 5  # a prompt with fewer of its own says too little to be compared
TEMPLATE_SHARE = 0.1  # shingles in more than this share of the prompts are the chat template or a system prompt
MOST_AT_ONCE = 100_000  # shingles looked up together: what bounds the memory
TEMPLATE_COUNT = 4  # and in more than so many prompts

_ROUND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)


def scramble(values: np.ndarray) -> np.ndarray:
    """uint64 hashes of whole numbers, one to one: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    bits = values.astype(np.uint64) + _STEP
    bits = (bits ^ (bits >> np.uint64(30))) * _ROUND[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _ROUND[1]
    return bits ^ (bits >> np.uint64(31))


def hashes_of(columns: Iterable[np.ndarray]) -> np.ndarray:
    """(N,) uint64 hashes of N rows of whole numbers, equal for equal rows. `columns`: (N,) each, at least one."""
    hashes = np.uint64(0)
    for column in columns:
        hashes = scramble(hashes + column.astype(np.uint64))
    return np.asarray(hashes)


@dataclass(frozen=True)
class Shingles:
    """The distinct shingles of several prompts, sorted by prompt, then hash. Both arrays are (shingles,)."""

    prompts: np.ndarray
    hashes: np.ndarray
    num_prompts: int

    def without(self, common: np.ndarray) -> "Shingles":
        """Without the shingles in `common`, which is sorted."""
        keep = ~is_in(self.hashes, common)
        return Shingles(self.prompts[keep], self.hashes[keep], self.num_prompts)

    def sizes(self) -> np.ndarray:
        """(num_prompts,) distinct shingles of each."""
        return np.bincount(self.prompts, minlength=self.num_prompts)


def shingles_of(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Shingles:
    """Of the prompts that begin at `starts` in `ids` and have `lengths` tokens."""
    counts = np.maximum(lengths - SHINGLE + 1, 0)
    prompts = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.repeat(starts, counts) + within
    hashes = hashes_of(ids[at + offset] for offset in range(SHINGLE))
    order = np.lexsort((hashes, prompts))
    prompts, hashes = prompts[order], hashes[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (prompts[1:] != prompts[:-1]) | (hashes[1:] != hashes[:-1])
    return Shingles(prompts[first], hashes[first], len(starts))


def concatenate(parts: list[Shingles]) -> Shingles:
    """Prompts numbered on from part to part."""
    before = np.cumsum([0, *(part.num_prompts for part in parts)])
    return Shingles(
        np.concatenate([part.prompts + start for part, start in zip(parts, before[:-1], strict=True)]),
        np.concatenate([part.hashes for part in parts]),
        int(before[-1]),
    )


def template_shingles(sample: Shingles) -> np.ndarray:
    """Sorted hashes of the shingles that a tenth of the sample's distinct prompts have: two prompts are not alike
    because one template wrote both.
    """
    # Several rows about one prompt are one prompt here: the same set of hashes has the same sum.
    sums = np.zeros(sample.num_prompts, dtype=np.uint64)
    np.add.at(sums, sample.prompts, scramble(sample.hashes))
    _, representatives = np.unique(sums, return_index=True)
    distinct = np.isin(sample.prompts, representatives)
    hashes, counts = np.unique(sample.hashes[distinct], return_counts=True)
    return hashes[counts > max(TEMPLATE_SHARE * len(representatives), TEMPLATE_COUNT)]


@dataclass(frozen=True)
class Alike:
    """Twos of prompts, (twos,) each. `comparisons`: how many were held against each other to find them."""

    mine: np.ndarray
    theirs: np.ndarray
    similarity: np.ndarray
    comparisons: int

    @staticmethod
    def none() -> "Alike":
        return Alike(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), 0)

    @staticmethod
    def joined(parts: Sequence["Alike"]) -> "Alike":
        return Alike(
            np.concatenate([part.mine for part in parts]),
            np.concatenate([part.theirs for part in parts]),
            np.concatenate([part.similarity for part in parts]),
            sum(part.comparisons for part in parts),
        )

    def best(self, row_ids: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """(one of ours, theirs, similarity) for each of theirs: its most similar, of equal ones the first row.

        `row_ids` are those of all of ours.
        """
        order = np.lexsort((row_ids[self.mine], -self.similarity, self.theirs))
        _, first = np.unique(self.theirs[order], return_index=True)
        chosen = order[first]
        yield from zip(
            self.mine[chosen].tolist(), self.theirs[chosen].tolist(), self.similarity[chosen].tolist(), strict=True
        )


class PromptIndex:
    """Prompts that others are compared with. `common`: sorted hashes of shingles that count for nothing."""

    def __init__(self, prompts: Shingles, common: np.ndarray) -> None:
        self._common = common
        own = prompts.without(common)
        self.sizes = own.sizes()
        self._members = np.sort(own.hashes ^ scramble(own.prompts))  # which shingle is in which prompt
        self._known, self._frequency = np.unique(own.hashes, return_counts=True)
        kept, word = self._rarest(own)
        order = np.argsort(word[kept], kind="stable")
        self._postings = own.prompts[kept][order]
        self._posting_starts = np.searchsorted(word[kept][order], np.arange(len(self._known) + 1))
        self._posting_counts = np.diff(self._posting_starts)

    def find(self, prompts: Shingles) -> "Alike":
        """The twos, one of `prompts` and one of the index, that are at least THRESHOLD alike.

        Safe to use from several threads.
        """
        found = [Alike.none()]
        if not len(self._known):
            return found[0]
        own = prompts.without(self._common)
        sizes = own.sizes()
        starts = np.concatenate([[0], np.cumsum(sizes)])
        kept, word = self._rarest(own)
        kept = kept[word[kept] >= 0]
        counts = self._posting_counts[word[kept]]
        owner = own.prompts[kept]  # sorted
        for part in _parts(np.bincount(owner, counts, own.num_prompts).astype(np.int64), MOST_AT_ONCE):
            some = slice(*np.searchsorted(owner, (part.start, part.stop)))
            here = np.repeat(owner[some], counts[some])
            ends = np.cumsum(counts[some])
            within = np.arange(len(here)) - np.repeat(ends - counts[some], counts[some])
            there = self._postings[np.repeat(self._posting_starts[word[kept[some]]], counts[some]) + within]
            # Sets whose sizes are too far apart cannot be alike enough.
            smaller, larger = np.minimum(sizes[here], self.sizes[there]), np.maximum(sizes[here], self.sizes[there])
            possible = (smaller >= MIN_SHINGLES) & (smaller >= THRESHOLD * larger)
            candidates = np.unique(here[possible] * len(self.sizes) + there[possible])
            found += self._alike(own, sizes, starts, *np.divmod(candidates, len(self.sizes)))
        return Alike.joined(found)

    def _alike(
        self, own: Shingles, sizes: np.ndarray, starts: np.ndarray, mine: np.ndarray, theirs: np.ndarray
    ) -> Iterator["Alike"]:
        """Those of the candidates that are alike enough, each compared in full."""
        for part in _parts(sizes[mine], MOST_AT_ONCE):
            a, b = mine[part], theirs[part]
            counts = sizes[a]
            ends = np.cumsum(counts)
            at = np.repeat(starts[a], counts) + np.arange(ends[-1]) - np.repeat(ends - counts, counts)
            met = is_in(own.hashes[at] ^ scramble(np.repeat(b, counts)), self._members)
            shared = np.add.reduceat(met, ends - counts, dtype=np.int64)
            similarity = shared / (counts + self.sizes[b] - shared)
            enough = similarity >= THRESHOLD
            yield Alike(a[enough], b[enough], similarity[enough], comparisons=len(a))

    def _rarest(self, own: Shingles) -> tuple[np.ndarray, np.ndarray]:
        """Positions of each prompt's rarest shingles, and the place of every shingle in the index (-1: nowhere).

        Rare is few prompts of the index, then the smaller hash: one order for all, on which the filter rests.
        """
        word = np.searchsorted(self._known, own.hashes)
        word[word == len(self._known)] = 0
        absent = self._known[word] != own.hashes
        frequency = np.where(absent, 0, self._frequency[word])
        word = np.where(absent, -1, word)
        order = np.lexsort((own.hashes, frequency, own.prompts))
        sizes = own.sizes()
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        limit = sizes - np.ceil(THRESHOLD * sizes - 1e-9).astype(np.int64) + 1
        return order[rank < np.repeat(limit, sizes)], word


def _parts(counts: np.ndarray, most: int) -> Iterator[slice]:
    """Slices of `counts` that add up to at most `most` each; a larger one stands alone."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, before + most, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def is_in(values: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return sorted_values[at] == values
