"""A checkpoint's tensors: safetensors files, written and read through torch's distributed checkpoint.

Nothing is unpickled, whoever wrote the files. Sharded tensors may be read back by another number of processes.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from rmcli.errors import RmcliError
from rmcli.parallel import world
from rmcli.parallel.collectives import Group, gather, together
from rmcli.parallel.parts import own_part

FILE_BYTES = 2**27  # of one file, about: it is put together in memory, twice


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write(folder: Path, tensors: Mapping[str, Tensor], group: Group = None) -> None:
    """Into files of the folder, which is made. Raises OSError, or RuntimeError with what torch said.

    Every process writes what lies on it; of what is whole on all of them one writes it.
    """
    files = _files(_sizes_of_all(tensors, group))
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=files, save_distributed=True)
    with _explained():
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_state(contiguous, storage_writer=writer, process_group=group, no_dist=world.size() == 1)


def read(folder: Path, tensors: Mapping[str, Tensor], alone: bool = False) -> None:
    """Fill the given tensors in place. Raises RmcliError where one is missing or of another shape or type.

    All processes call it, but for `alone`: this one reads whole tensors for itself.
    """
    stored = shapes(folder)
    for name, tensor in tensors.items():
        here = (tensor.dtype, tuple(tensor.shape))
        if name not in stored:
            raise RmcliError(f"checkpoint {folder} has no {name}", "it belongs to another model or configuration")
        if stored[name] != here:
            raise RmcliError(
                f"checkpoint {folder}: {name} is {_told(stored[name])} there and {_told(here)} here",
                "it belongs to another model or configuration",
            )
    with _explained():
        reader = HuggingFaceStorageReader(str(folder))
        load_state(dict(tensors), storage_reader=reader, no_dist=alone or world.size() == 1)


def shapes(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of the checkpoint. Raises RmcliError where its files cannot be read."""
    try:
        entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RmcliError(f"checkpoint {folder} cannot be read: {error}", "its files are damaged") from error
    return {name: (entry.properties.dtype, tuple(entry.size)) for name, entry in entries.items()}  # pyright: ignore


def first_difference(folder: Path, tensors: Mapping[str, Tensor], group: Group = None) -> str | None:
    """The first tensor that is not there bit by bit, read from the disk itself where the system lets us.

    Every process looks at the files that it has written; together they must hold all there is.
    """
    with together(group):
        here = _read_back(folder, tensors)
    looked = gather(here, group)
    sizes = _sizes_of_all(tensors, group)
    different = [name for one in looked for name in one.different]
    missing = sizes.keys() - set().union(*(one.found for one in looked))
    if different or missing:
        return min(different or missing)
    less = sum(sizes.values()) - sum(one.num_bytes for one in looked)
    return f"a part of {less:,} bytes" if less else None


class _ReadBack(NamedTuple):
    """What one process finds in its own files."""

    found: set[str]
    different: list[str]
    num_bytes: int


def _read_back(folder: Path, tensors: Mapping[str, Tensor]) -> _ReadBack:
    found, different, num_bytes = set(), [], 0
    for path in own_files(folder):
        _forget_cached(path)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                stored = file.get_tensor(name)
                found.add(name)
                num_bytes += stored.numel() * stored.element_size()
                if name not in tensors or not _same_bits(stored, own_part(tensors[name])):
                    different.append(name)
    return _ReadBack(found, different, num_bytes)


def own_files(folder: Path) -> list[Path]:
    """Those that this process has written."""
    return sorted(folder.glob(f"shard-{world.rank() + 1:05d}-*.safetensors"))


def _sizes_of_all(tensors: Mapping[str, Tensor], group: Group) -> dict[str, int]:
    """Bytes of every tensor that any process has, whole; in the same order on each."""
    own = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    together: dict[str, int] = {}
    for sizes in gather(own, group):
        together |= sizes
    return together


def _same_bits(one: Tensor, other: Tensor) -> bool:
    other = other.detach().cpu().contiguous()
    flat = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def _forget_cached(path: Path) -> None:
    """Let the next read come from the disk; what is not yet on it is kept by the system."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(sizes: Mapping[str, int]) -> dict[str, int]:
    """Which file, from 1 on, each tensor goes to."""
    number, filled, files = 1, 0, {}
    for name, size in sizes.items():
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        files[name] = number
        filled += size
    return files


def _told(kind: tuple[torch.dtype, tuple[int, ...]]) -> str:
    return f"{str(kind[0]).removeprefix('torch.')} {list(kind[1])}"


@contextmanager
def _explained() -> Iterator[None]:
    """Where one process reads or writes DCP warns that it is one. Its errors become ours."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:  # a BaseException
        causes = [failure[0] for failure in error.failures.values()]
        for cause in causes:
            # A full disk speaks for itself; Ctrl-C or a signal is no fault of the disk.
            if isinstance(cause, OSError) or not isinstance(cause, Exception):
                raise cause from None
        raise RuntimeError("; ".join(" ".join(str(cause).split()) for cause in causes)) from error
