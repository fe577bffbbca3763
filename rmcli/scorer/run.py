"""Token groups to scores: packed into forwards of bounded size, every prefix computed once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmcli.model import forward
from rmcli.model.batch import build_batch
from rmcli.packs import pack
from rmcli.records import BatchKind, TokenGroup


def run_forward(
    network: Any, groups: Sequence[TokenGroup], kind: BatchKind, pad_token_id: int, dtype: str = "auto"
) -> Tensor:
    """(S,) float32 scores of the groups as one forward, in the order of groups and responses; no gradients.

    All that turns token groups into numbers outside of training steps goes through here. The caller chooses what runs
    together: `Runner.run` fills forwards up to a size, evaluation on several processes gives each equally many.
    """
    with torch.no_grad():
        return forward.scores(network, build_batch(kind, groups, pad_token_id, network.device), dtype)


@dataclass(frozen=True)
class Runner:
    """A network ready to score. `kind` is how it runs conversations, `dtype` is `model.dtype`.

    `capacity`: tokens of one forward at most, which bounds the memory; no less than one conversation may have.
    """

    network: Any
    kind: BatchKind
    pad_token_id: int
    dtype: str
    capacity: int

    def run(
        self, groups: Sequence[TokenGroup], advance: Callable[[int], None] = lambda count: None
    ) -> list[list[float]]:
        """Scores of each group's conversations; `advance` is told of groups that are done.

        Answers that are alike are run once, and have one score. A group larger than a forward is run in parts.
        """
        different = [list({response.tobytes(): response for response in group.responses}) for group in groups]
        results = self._run_different([_only_different(group) for group in groups], advance)
        return [
            [values[keys.index(response.tobytes())] for response in group.responses]
            for group, keys, values in zip(groups, different, results, strict=True)
        ]

    def _run_different(self, groups: list[TokenGroup], advance: Callable[[int], None]) -> list[list[float]]:
        parts = [(index, part) for index, group in enumerate(groups) for part in _parts(group, self.capacity)]
        sizes = [part.num_tokens for _, part in parts]
        values: list[list[float]] = [[] for _ in parts]
        parts_left = np.bincount([index for index, _ in parts], minlength=len(groups))
        for members in pack.best_fit_decreasing(sizes, max([self.capacity, *sizes])):
            found = self._scores([parts[member][1] for member in members])
            for member in members:
                count = len(parts[member][1].responses)
                values[member], found = found[:count], found[count:]
                parts_left[parts[member][0]] -= 1
                advance(int(parts_left[parts[member][0]] == 0))
        results: list[list[float]] = [[] for _ in groups]
        for (index, _), part_values in zip(parts, values, strict=True):
            results[index] += part_values
        return results

    def _scores(self, groups: list[TokenGroup]) -> list[float]:
        """Padded, each group is a forward of its own."""
        forwards = [[group] for group in groups] if self.kind == "padded" else [groups]
        scores = [run_forward(self.network, one, self.kind, self.pad_token_id, self.dtype) for one in forwards]
        return [value for scores_S in scores for value in scores_S.tolist()]


def _only_different(group: TokenGroup) -> TokenGroup:
    return replace(group, responses=tuple({response.tobytes(): response for response in group.responses}.values()))


def _parts(group: TokenGroup, capacity: int) -> Iterator[TokenGroup]:
    """The group as groups of at most `capacity` tokens, where more than one response fits; each with the prefix."""
    first, size = 0, len(group.prefix)
    for number, response in enumerate(group.responses):
        if number > first and size + len(response) > capacity:
            yield replace(group, responses=group.responses[first:number])
            first, size = number, len(group.prefix)
        size += len(response)
    yield replace(group, responses=group.responses[first:])
