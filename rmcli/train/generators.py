"""torch's random generators of this process, which dropout draws from: kept in a checkpoint, put back from it."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmcli import output
from rmcli.parallel import world
from rmcli.runs import tensors
from rmcli.train.past import INEXACT


def _key(kind: str) -> str:
    return f"generator_{world.rank()}.{kind}"


def states(device: torch.device) -> dict[str, Tensor]:
    """One byte tensor each, under the number of the process."""
    found = {_key("cpu"): torch.get_rng_state()}
    if device.type == "cuda":
        found[_key("cuda")] = torch.cuda.get_rng_state(device)
    return found


def seed_apart(seed: int) -> None:
    """Each process draws numbers of its own: the masks of dropout must not repeat from one to the next."""
    torch.manual_seed(int(np.random.SeedSequence([seed, world.rank()]).generate_state(1)[0]))


def restore(checkpoint: Path, device: torch.device) -> None:
    """Put them back as they were when the checkpoint was written; what it does not know of is said.

    A process that it does not know of keeps its own, which its number sets apart from the others'.
    """
    stored = tensors.shapes(checkpoint)
    here = states(device)
    tensors.read(checkpoint, {name: state for name, state in here.items() if name in stored})
    torch.set_rng_state(here[_key("cpu")])
    if device.type == "cuda":
        if _key("cuda") not in stored:
            output.warn(f"the checkpoint was written without this GPU: {INEXACT}")
        torch.cuda.set_rng_state(here[_key("cuda")], device)
