"""One queue of conversations in front of the model: what waits is scored in batches, whichever requests it is of."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

from rmcli import output
from rmcli.model.out_of_memory import is_out_of_memory
from rmcli.records import TokenGroup
from rmcli.scorer.scorer import Score, Scorer
from rmcli.serve.metrics import Metrics
from rmcli.serve.reading import Side
from rmcli.serve.refusal import Refused, too_busy
from rmcli.serve.shared import shared_prompts

_FIRST_GUESS = 10_000.0  # tokens a second, until a batch has been timed


@dataclass(eq=False)
class _Job:
    """The conversations of one request. `done` holds the scores in the request's order."""

    sides: list[TokenGroup]
    answer: "asyncio.Future[list[Score]]"
    taken: int = 0
    done: dict[int, Score] = field(default_factory=dict)

    @property
    def is_wanted(self) -> bool:
        return not self.answer.done()


class Queue:
    """Of one event loop; the model runs in a thread of its own, a batch at a time.

    A batch has as many tokens as one forward, and no request has the next one to itself while others wait: each takes
    its turn. `max_waiting`: conversations; more are refused.
    """

    def __init__(self, scorer: Scorer, max_waiting: int, metrics: Metrics, max_requests: int | None = None) -> None:
        self._scorer = scorer
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._max_requests = max_requests  # in one batch; None is all
        self._jobs: deque[_Job] = deque()
        self._wakes = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rmcli-model")
        self._tokens_per_second = _FIRST_GUESS
        self._has_said_short = False

    @property
    def waiting(self) -> int:
        return sum(len(job.sides) - job.taken for job in self._jobs if job.is_wanted)

    async def score(self, sides: Sequence[Side], seconds: float, is_own: bool = False) -> list[Score]:
        """A Score per side, in order; those without tokens have their error. Cancelled, the rest is not scored.

        Raises Refused: 429 where too many wait already, unless `is_own`, or where it took longer than `seconds`; 413
        where one of them alone does not fit in memory.
        """
        good = [side for side in sides if isinstance(side, TokenGroup)]
        if not is_own and good and self.waiting + len(good) > self._max_waiting:
            raise too_busy(
                f"{self.waiting:,} conversations wait and {len(good):,} came, the limit is {self._max_waiting:,}",
                self.seconds_left(),
            )
        scores = iter(await self._scored(good, seconds) if good else [])
        return [Score(None, error=side) if isinstance(side, str) else next(scores) for side in sides]

    async def _scored(self, sides: list[TokenGroup], seconds: float) -> list[Score]:
        job = _Job(sides, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._wakes.set()
        try:
            async with asyncio.timeout(seconds):
                return await job.answer
        except TimeoutError:
            raise too_busy(f"not scored within {seconds:g} s", self.seconds_left()) from None

    def seconds_left(self) -> float:
        """About how long what waits will take."""
        tokens = sum(side.num_tokens for job in self._jobs if job.is_wanted for side in job.sides[job.taken :])
        return tokens / self._tokens_per_second

    async def run(self) -> None:
        """Score what comes, for ever.

        A batch that fails is told to the requests it is of, and to no other. Where memory is short for it, its
        conversations are scored in smaller ones, and what does not fit alone is told to its request.
        """
        while True:
            batch = self._take()
            if not batch:
                self._wakes.clear()
                await self._wakes.wait()
                continue
            started = perf_counter()
            sides = [job.sides[index] for job, index in batch]
            forward = asyncio.get_running_loop().run_in_executor(self._thread, self._fitting, sides)
            await asyncio.wait([forward])
            self._deliver(batch, forward)
            self._note(sides, perf_counter() - started)

    def close(self) -> None:
        self._thread.shutdown()

    def _take(self) -> list[tuple[_Job, int]]:
        """The next batch: of each request in turn as much as fits. Those that nobody waits for are dropped."""
        batch: list[tuple[_Job, int]] = []
        room = self._scorer.runner.capacity
        requests = 0
        later: list[_Job] = []
        while self._jobs and requests != self._max_requests:
            job = self._jobs.popleft()
            if not job.is_wanted:
                continue
            requests += 1
            while job.taken < len(job.sides) and (not batch or job.sides[job.taken].num_tokens <= room):
                room -= job.sides[job.taken].num_tokens
                batch.append((job, job.taken))
                job.taken += 1
            if job.taken < len(job.sides):
                later.append(job)
                break
        self._jobs.extend(later)
        return batch

    def _fitting(self, sides: list[TokenGroup]) -> list[Score | Refused]:
        """In the model's thread. Halved as often as memory asks for it."""
        try:
            return [*self._forward(sides)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler: the error holds the failed forward's tensors.
        tokens = sum(side.num_tokens for side in sides)
        if len(sides) == 1:
            return [_too_large(tokens)]
        self._say_short(tokens)
        middle = len(sides) // 2
        return self._fitting(sides[:middle]) + self._fitting(sides[middle:])

    def _say_short(self, tokens: int) -> None:
        if not self._has_said_short:
            output.warn(
                f"out of memory in a batch of {tokens:,} tokens: it is scored in smaller ones, which takes longer; "
                "-s data.max_packed_length=N keeps batches small"
            )
        self._has_said_short = True

    def _forward(self, sides: list[TokenGroup]) -> list[Score]:
        groups = shared_prompts(sides)
        scored = self._scorer.score_sides([[sides[index] for index in group] for group in groups])
        found = {
            index: score
            for group, scores in zip(groups, scored, strict=True)
            for index, score in zip(group, scores, strict=True)
        }
        return [found[index] for index in range(len(sides))]

    def _deliver(self, batch: list[tuple[_Job, int]], forward: "asyncio.Future[list[Score | Refused]]") -> None:
        error = forward.exception()
        found = forward.result() if error is None else [error] * len(batch)
        for (job, index), one in zip(batch, found, strict=True):
            if not job.is_wanted:
                continue
            if not isinstance(one, Score):
                job.answer.set_exception(one)
                continue
            job.done[index] = one
            if len(job.done) == len(job.sides):
                job.answer.set_result([job.done[place] for place in range(len(job.sides))])

    def _note(self, sides: list[TokenGroup], seconds: float) -> None:
        tokens = sum(side.num_tokens for side in sides)
        self._tokens_per_second += 0.2 * (tokens / max(seconds, 1e-6) - self._tokens_per_second)
        self._metrics.note_batch(len(sides), tokens, seconds)


def _too_large(tokens: int) -> Refused:
    return Refused(
        413,
        f"a conversation of {tokens:,} tokens does not fit in the server's memory",
        "shorten it, or serve the model where there is more memory",
    )
