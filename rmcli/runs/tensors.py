"""A checkpoint's tensors: safetensors files, written and read through torch's distributed checkpoint.

Nothing is unpickled, whoever wrote the files. Sharded tensors may be read back by another number of processes.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from rmcli.errors import RmcliError

FILE_BYTES = 2**27  # of one file, about: it is put together in memory, twice


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Into files of the folder, which is made. Raises OSError, or RuntimeError with what torch said."""
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True)
    with _one_process():
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_state(whole, storage_writer=writer, no_dist=True)


def read(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill the given tensors in place. Raises RmcliError where one is missing or of another shape or type."""
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
    with _one_process():
        load_state(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def shapes(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of the checkpoint. Raises RmcliError where its files cannot be read."""
    try:
        entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RmcliError(f"checkpoint {folder} cannot be read: {error}", "its files are damaged") from error
    return {name: (entry.properties.dtype, tuple(entry.size)) for name, entry in entries.items()}  # pyright: ignore


def first_difference(folder: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not there bit by bit, read from the disk itself where the system lets us."""
    missing = set(tensors)
    for path in sorted(folder.glob("*.safetensors")):
        _forget_cached(path)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                missing.discard(name)
                if not _same_bits(file.get_tensor(name), tensors[name]):
                    return name
    return min(missing, default=None)


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


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file, from 1 on, each tensor goes to."""
    number, filled, files = 1, 0, {}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        files[name] = number
        filled += size
    return files


def _told(kind: tuple[torch.dtype, tuple[int, ...]]) -> str:
    return f"{str(kind[0]).removeprefix('torch.')} {list(kind[1])}"


@contextmanager
def _one_process() -> Iterator[None]:
    """`no_dist=True` says that one process reads or writes; DCP warns of it all the same. Its errors become ours."""
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
