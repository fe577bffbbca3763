"""Checkpoints of a run, written at once or beside the training: at most one is under way."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

Write = Callable[[Mapping[str, Tensor]], Path]


class Saver:
    """`save` takes what writes; its error surfaces there, or, beside the training, at the next `check` or `save`."""

    def __init__(self, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if beside else None
        self._under_way: Future[Path] | None = None

    def save(self, tensors: Mapping[str, Tensor], write: Write) -> None:
        """Beside the training `write` gets copies in main memory, which later steps do not change."""
        if self._pool is None:
            write(tensors)
            return
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._under_way = self._pool.submit(write, copies)

    def check(self) -> None:
        """Raise what went wrong in a checkpoint that has ended."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until no checkpoint is under way. Raises what went wrong in it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Let the last one end, whatever comes of it."""
        if self._pool is not None:
            self._pool.shutdown()
