"""What is known of K responses: from ranks, scores or lists to comparisons, and the strict order behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from rmcli.errors import Skip
from rmcli.records import PAIR, Comparison, PreferenceGroup
from rmcli.rows.map_fns.fields import number

TIE = 0.5


def from_ranks(ranks: Sequence[Any]) -> tuple[Comparison, ...]:
    """Every pair of K ranks, 1 the best; equal ranks are ties. Ranks need not be 1 to K. Raises Skip."""
    values = [number(rank, "bad_comparisons") for rank in ranks]
    return tuple(
        Comparison(i, j, TIE)
        if values[i] == values[j]
        else Comparison(*((i, j) if values[i] < values[j] else (j, i)))
        for i, j in combinations(range(len(values)), 2)
    )


def from_scores(scores: Sequence[Any]) -> tuple[Comparison, ...]:
    """Every pair of K scores, the highest the best; equal scores are ties, the difference is the margin."""
    values = [number(score, "bad_comparisons") for score in scores]
    return tuple(
        Comparison(i, j, TIE)
        if values[i] == values[j]
        else Comparison(*((i, j) if values[i] > values[j] else (j, i)), 1.0, abs(values[i] - values[j]))
        for i, j in combinations(range(len(values)), 2)
    )


def from_list(entries: Any) -> tuple[Comparison, ...]:
    """Comparisons as a row spells them: [first, second, label, margin] or an object; the last two may be missing.

    Raises Skip("bad_comparisons") for another shape; the values are checked where every group is.
    """
    if not isinstance(entries, list | tuple):
        raise Skip("bad_comparisons")
    found = []
    for entry in entries:
        try:
            if isinstance(entry, Mapping):
                given = {name: value for name, value in entry.items() if value is not None}  # null: not given
                found.append(Comparison(**given))
            else:
                found.append(Comparison(*entry))
        except TypeError as error:
            raise Skip("bad_comparisons") from error
    return tuple(found)


def order_of(comparisons: Sequence[Comparison], num_responses: int) -> tuple[int, ...] | None:
    """The responses, best first, if the comparisons leave exactly one order; else None.

    None for a tie, a cycle, and where some neighbours in the order are not compared. A label above 1/2 says that the
    first is better, below 1/2 the second.
    """
    if any(comparison.is_tie for comparison in comparisons):
        return None
    better = {(c.first, c.second) if c.label > TIE else (c.second, c.first) for c in comparisons}
    worse_than: list[list[int]] = [[] for _ in range(num_responses)]
    beaten_by = [0] * num_responses  # how many of those that are left
    for first, second in better:
        worse_than[first].append(second)
        beaten_by[second] += 1
    # In a strict order each step leaves one response that none beats. Each pair is looked at once (Kahn 1962).
    order: list[int] = []
    unbeaten = [response for response in range(num_responses) if not beaten_by[response]]
    while unbeaten:
        if len(unbeaten) > 1:
            return None
        (best,) = unbeaten
        order.append(best)
        unbeaten = []
        for response in worse_than[best]:
            beaten_by[response] -= 1
            if not beaten_by[response]:
                unbeaten.append(response)
    return tuple(order) if len(order) == num_responses else None


def checked(group: PreferenceGroup) -> PreferenceGroup:
    """The group, if its comparisons make sense, each turned so that the first is not the worse one.

    Raises Skip: bad_comparisons (none, an index out of range, the same two twice, a response that is never compared),
    bad_label, bad_margin, and chosen_equals_rejected for two equal responses among more of which one is said to be
    better. Groups of nothing but ties are kept: whether they can train is the loss's to say.
    """
    count = len(group.conversations)
    if group.comparisons is PAIR and count == 2:
        return group  # not said otherwise, the common case
    comparisons = tuple(_turned(_checked(comparison, count)) for comparison in from_list(group.comparisons))
    if {index for c in comparisons for index in (c.first, c.second)} != set(range(count)):
        raise Skip("bad_comparisons")
    if len({frozenset((c.first, c.second)) for c in comparisons}) < len(comparisons):
        raise Skip("bad_comparisons")
    if count > 2:
        talks = group.conversations
        if any(not c.is_tie and talks[c.first] == talks[c.second] for c in comparisons):
            raise Skip("chosen_equals_rejected")
    return replace(group, comparisons=comparisons)


def best_first(group: PreferenceGroup) -> PreferenceGroup:
    """The group with its conversations in order, best first, and comparisons to match, where there is an order."""
    if group.comparisons == PAIR:
        return group
    order = order_of(group.comparisons, len(group.conversations))
    if order is None:
        return group
    place = {response: position for position, response in enumerate(order)}
    moved = (c._replace(first=place[c.first], second=place[c.second]) for c in group.comparisons)
    return replace(
        group, conversations=tuple(group.conversations[index] for index in order), comparisons=tuple(sorted(moved))
    )


def _checked(comparison: Comparison, count: int) -> Comparison:
    first, second, label, margin = comparison
    for index in (first, second):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise Skip("bad_comparisons")
    label = number(label, "bad_label")
    if not 0 <= label <= 1:
        raise Skip("bad_label")
    margin = number(margin, "bad_margin")
    if margin < 0:
        raise Skip("bad_margin")
    if first == second:
        raise Skip("bad_comparisons")
    return Comparison(first, second, label, margin)


def _turned(comparison: Comparison) -> Comparison:
    first, second, label, margin = comparison
    return comparison if label >= TIE else Comparison(second, first, 1 - label, margin)
