"""Work on batches in several threads, with results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

BATCHES_AHEAD = 2  # per thread, waiting to be worked on or to be taken

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Batch], Result], batches: Iterable[Batch], num_threads: int
) -> Generator[tuple[Batch, Result]]:
    """Each batch with `work(batch)`, in order, a few batches ahead.

    The caller's thread is one of `num_threads`: where it would wait for the next result it works on a batch itself.
    One thread more than there are cores would have them take the processors' caches from each other.
    """
    if num_threads == 1:
        yield from ((batch, work(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(num_threads - 1, thread_name_prefix="work") as pool:
        waiting: deque[tuple[Batch, Future[Result]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(work, batch)))
                if len(waiting) > BATCHES_AHEAD * num_threads:
                    yield _first(waiting, work)
            while waiting:
                yield _first(waiting, work)
        finally:
            pool.shutdown(cancel_futures=True)


def _first(waiting: deque[tuple[Batch, Future[Result]]], work: Callable[[Batch], Result]) -> tuple[Batch, Result]:
    """Take the first batch with its result; until that is there, work on others that no thread has begun."""
    untouched = (place for place, (_, future) in enumerate(waiting) if future.cancel())
    while not waiting[0][1].done() and (place := next(untouched, None)) is not None:
        batch, _ = waiting[place]
        waiting[place] = (batch, _done(work, batch))
    batch, future = waiting.popleft()
    return batch, future.result()


def _done(work: Callable[[Batch], Result], batch: Batch) -> Future[Result]:
    """What `work` gives or raises: an error has to wait for its turn, as those of other threads do."""
    future: Future[Result] = Future()
    try:
        future.set_result(work(batch))
    except Exception as error:  # noqa: BLE001 (raised again in its turn)
        future.set_exception(error)
    return future
