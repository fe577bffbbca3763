"""Checkpoints of a run, written at once or beside the training: at most one is under way."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh

from rmcli.parallel import world
from rmcli.parallel.collectives import Group, largest_number
from rmcli.parallel.mesh import MeshShape, build_mesh
from rmcli.parallel.parts import host_copy

# What writes: the tensors, and the group that the processes talk in meanwhile.
Write = Callable[[Mapping[str, Tensor], Group], Path]


class Saver:
    """`save` takes what writes; its error surfaces there, or, beside the training, at the next `check` or `save`.

    `mesh` is how weights are cut over several processes. Beside the training these talk in a group of their own:
    in that of the training their messages would meet the steps'.
    """

    def __init__(self, beside: bool, mesh: MeshShape | None = None) -> None:
        begin = world.use_own_gpu if world.size() > 1 else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=begin) if beside else None
        self._group: Group = None
        self._mesh: DeviceMesh | None = None
        if beside and mesh is not None and mesh.size > 1:
            self._group = cast(Group, distributed.new_group(backend="gloo", timeout=world.PATIENCE))
            self._mesh = build_mesh(mesh, torch.device("cpu"))
        self._under_way: Future[Path] | None = None

    def save(self, tensors: Mapping[str, Tensor], write: Write) -> None:
        """Beside the training `write` gets copies in main memory, which later steps do not change."""
        if self._pool is None:
            write(tensors, None)
            return
        self.wait()
        copies = {name: host_copy(tensor, self._mesh) for name, tensor in tensors.items()}
        self._under_way = self._pool.submit(write, copies, self._group)

    def check(self) -> None:
        """Raise what went wrong in a checkpoint that has ended. Where it did for one process all wait for it."""
        if self._under_way is None:
            return
        has_failed = self._under_way.done() and self._under_way.exception() is not None
        if largest_number(has_failed):
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
