"""The processes that train together: which of them this one is, and how they meet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from rmcli.parallel import end, word

# Longer than any one process may work alone while the others wait: rank 0 reads a large model, or writes one.
PATIENCE = timedelta(hours=1)


def rank() -> int:
    """The number of this process, from 0 on; 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes train together; 1 where this one is alone."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that talks and writes files: the one of rank 0."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process among those of its machine, from 0 on."""
    return int(os.environ.get("LOCAL_RANK", "0")) if distributed.is_initialized() else 0


def local_size(otherwise: int) -> int:
    """How many processes are on this machine, as the launcher says; `otherwise` where none does."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or otherwise)


def use_own_gpu(number: int | None = None) -> None:
    """Let this thread begin on the GPU of its process, where there is one; every new thread begins on the first."""
    number = local_rank() if number is None else number
    if torch.cuda.is_available() and number < torch.cuda.device_count():
        torch.cuda.set_device(number)


@contextmanager
def joined(size: int) -> Iterator[None]:
    """Meet the other processes at the place that the environment names; nothing where this one is alone.

    Tensors on the host are exchanged by gloo, those on a GPU by NCCL.
    """
    if size == 1:
        yield
        return
    has_cuda = torch.cuda.is_available()
    use_own_gpu(int(os.environ["LOCAL_RANK"]))
    store, rank, _ = next(rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if has_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    word.share(store, rank)
    try:
        yield
        distributed.destroy_process_group()
    except BaseException:
        # To destroy it might wait for the others. Launchers have the store in a process of their own.
        end.leave_group(has_store=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
        raise
    finally:
        word.share(None, 0)
