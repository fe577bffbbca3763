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
    """Each batch with `work(batch)`, in order, worked on in `num_threads` threads.

    With several threads a few batches are taken ahead. With one, the next is taken when the last result has been
    used: nothing happens at the same time. Even then the caller's thread does not work itself. glibc gives each
    thread memory from a heap of its own, and the first thread's is in pieces after many imports: tokenizers are
    slower there.
    """
    ahead = BATCHES_AHEAD * num_threads if num_threads > 1 else 0
    waiting: deque[tuple[Batch, Future[Result]]] = deque()

    def first() -> tuple[Batch, Result]:
        batch, future = waiting.popleft()
        return batch, future.result()

    with ThreadPoolExecutor(num_threads, thread_name_prefix="work") as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(work, batch)))
                if len(waiting) > ahead:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)
