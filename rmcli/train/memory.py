"""Whether a job fits into the device's memory, and what would."""

from rmcli.errors import RmcliError
from rmcli.model.device import is_reduced
from rmcli.model.memory import bytes_per_parameter, free_memory
from rmcli.train.job import GIB, Job
from rmcli.train.plan import has_several_forwards


def check_memory(job: Job) -> None:
    """Stop before loading what cannot fit. Raises RmcliError with need, have and what would help."""
    have = free_memory(job.device)
    if not job.config.train.check_memory or job.memory.total <= have:
        return
    need, states = job.memory.total / GIB, job.memory.states / GIB
    helps = (
        "fewer tokens per forward (data.max_packed_length) or train.activation_checkpointing=full"
        if job.memory.states < have
        else _what_needs_less(job, have)
    )
    raise RmcliError(
        f"not enough memory on {job.device}: need about {need:.1f} GiB ({states:.1f} for weights, gradients and "
        f"AdamW), have {have / GIB:.1f} GiB",
        f"what would fit: {helps}; train.check_memory=false tries anyway",
    )


def _what_needs_less(job: Job, have: int) -> str:
    """Where weights, gradients and optimizer alone do not fit: the first way to hold them that does, or none."""
    train = job.config.train
    several = has_several_forwards(job.config, job.sizes, job.batch_choice.kind)
    reduced = is_reduced(job.config.model.dtype, job.device)
    ways = [{"master_weights": "split"}] if reduced else []
    ways.append({"optimizer": "adamw_8bit"})
    ways += [ways[0] | ways[-1]] if reduced else []
    for way in ways:
        smaller = train.model_copy(update=way)
        bytes_each = bytes_per_parameter(smaller, reduced, several)
        needed = job.memory.num_parameters * bytes_each
        if smaller != train and needed < min(have, job.memory.states):
            keys = " with ".join(f"train.{key}={value}" for key, value in way.items())
            return f"{keys} ({needed / GIB:.1f} GiB, {bytes_each} bytes per parameter)"
    return "a smaller backbone: weights, gradients and optimizer alone do not fit"
