"""`train.deterministic`: torch's switches for runs that repeat bit by bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms only, for a while; an operation that has none raises. Does nothing unless wanted.

    torch's varlen kernel, its SDPA and flash-attn take the deterministic backward by this switch. cuBLAS reads its
    variable when it starts, so the first matmul on CUDA must come after this.
    """
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        os.environ.get(CUBLAS_WORKSPACE),
    )
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        enabled, warn_only, benchmark, cudnn_deterministic, workspace = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, cudnn_deterministic
        if workspace is None:
            del os.environ[CUBLAS_WORKSPACE]
