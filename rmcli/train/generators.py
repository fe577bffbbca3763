"""torch's random generators of this process, which dropout draws from: kept in a checkpoint, put back from it."""

from pathlib import Path

import torch
from torch import Tensor

from rmcli import output
from rmcli.runs import tensors
from rmcli.train.past import INEXACT

CPU, CUDA = "generator_0.cpu", "generator_0.cuda"  # 0: the number of the process


def states(device: torch.device) -> dict[str, Tensor]:
    """One byte tensor each."""
    found = {CPU: torch.get_rng_state()}
    if device.type == "cuda":
        found[CUDA] = torch.cuda.get_rng_state(device)
    return found


def restore(checkpoint: Path, device: torch.device) -> None:
    """Put them back as they were when the checkpoint was written; a device that it knows nothing of is said."""
    stored = tensors.shapes(checkpoint)
    here = states(device)
    tensors.read(checkpoint, {name: state for name, state in here.items() if name in stored})
    torch.set_rng_state(here[CPU])
    if device.type == "cuda":
        if CUDA not in stored:
            output.warn(f"the checkpoint was written without a GPU: {INEXACT}")
        torch.cuda.set_rng_state(here[CUDA], device)
