"""Whether the server gives the scores that its model had when it was exported."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from rmcli.errors import RmcliError
from rmcli.records import TokenGroup
from rmcli.scorer.scorer import Score, Scorer
from rmcli.serve.queue import Queue
from rmcli.serve.reading import Reader, Side
from rmcli.serve.refusal import Refused
from rmcli.ship import golden
from rmcli.ship.limits import limit

_AGAIN_AFTER = 60.0  # seconds: what was found so long ago is looked at again


@dataclass(frozen=True)
class Golden:
    """The golden conversations of a folder; none where it has no golden.jsonl. `allowed`: of a score's difference."""

    lines: Sequence[golden.Golden]
    allowed: float

    @classmethod
    def of(cls, folder: Path, dtype: str) -> "Golden":
        """Raises RmcliError where the file cannot be read."""
        if not (folder / golden.FILE).is_file():
            return cls((), 0.0)
        lines = golden.read(folder)
        return cls(lines, limit(dtype, lines))

    def sides(self, reader: Reader) -> list[Side]:
        return reader.texts.read_ids([line["input_ids"] for line in self.lines])

    def largest_difference(self, scores: Sequence[Score]) -> float:
        pairs = zip(scores, self.lines, strict=True)
        return max(inf if one.value is None else abs(one.value - line["score"]) for one, line in pairs)

    def check(self, scorer: Scorer, reader: Reader) -> None:
        """Raise RmcliError where messages and texts are not read as they were, or scores are others."""
        if not self.lines:
            return
        wanted = [line["input_ids"] for line in self.lines]
        read = {
            "messages": reader.conversations([line["messages"] for line in self.lines]),
            "text": reader.texts.read([line["text"] for line in self.lines]),
            "ids": self.sides(reader),
        }
        for what, sides in read.items():
            for number, (side, ids) in enumerate(zip(sides, wanted, strict=True), 1):
                if isinstance(side, str) or not np.array_equal(side.responses[0], ids):
                    why = side if isinstance(side, str) else "other tokens"
                    raise _not_the_model(f"{what} of golden conversation {number}: {why}")
        sides = [[side] for side in self.sides(reader)]
        off = self.largest_difference([score for (score,) in scorer.score_sides(sides)])
        if not off <= self.allowed:
            raise _not_the_model(f"a golden score is off by {off:.2g}, limit {self.allowed:.1g}")


def _not_the_model(what: str) -> RmcliError:
    return RmcliError(f"the model does not score as golden.jsonl says: {what}", "rmcli verify names what has changed")


class Ready:
    """What `/ready` answers: at once, from the last check; one that is old is made again meanwhile."""

    def __init__(self, golden_set: Golden, reader: Reader, queue: Queue) -> None:
        self._golden, self._reader, self._queue = golden_set, reader, queue
        self._off = 0.0  # it was checked before the server began to listen
        self._since = monotonic()
        self._checking: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self._off <= self._golden.allowed

    def answer(self) -> dict[str, Any]:
        if self._golden.lines and self._checking is None and monotonic() - self._since > _AGAIN_AFTER:
            self._checking = asyncio.create_task(self._check())
        found: dict[str, Any] = {"ready": self.is_ready, "golden": len(self._golden.lines)}
        if not self.is_ready:
            found["detail"] = f"a golden score is off by {self._off:.2g}, limit {self._golden.allowed:.1g}"
        return found

    async def _check(self) -> None:
        try:
            sides = [side for side in self._golden.sides(self._reader) if isinstance(side, TokenGroup)]
            scores = await self._queue.score(sides, seconds=600.0, is_own=True)
            self._off = self._golden.largest_difference(scores) if len(sides) == len(self._golden.lines) else inf
        except (RuntimeError, Refused):  # the model could not run
            self._off = inf
        finally:
            self._since, self._checking = monotonic(), None
