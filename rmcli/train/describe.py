"""The plan of a training run in numbers: what --dry-run shows, and the first lines of a run say."""

from itertools import islice
from typing import Any

from rmcli.model.memory import MemoryEstimate, free_memory
from rmcli.train.balance import slowest_over_mean
from rmcli.train.disk import DiskNeed, free_disk, need_of
from rmcli.train.job import GIB, Job
from rmcli.train.memory import what_fits
from rmcli.train.plan import num_steps, plan

_STEPS = 1000  # that the balance of the ranks is taken over


def describe(job: Job) -> dict[str, Any]:
    """The plan in numbers, for --dry-run and the first lines of a run."""
    one_epoch = job.config.train.model_copy(update={"max_epochs": 1, "max_steps": None})
    kind = job.batch_choice.kind
    steps_per_epoch = num_steps(job.sizes, one_epoch, kind, job.spread.ranks)
    have = free_memory(job.device, job.spread.processes)
    disk = free_disk(job.run_folder)
    return {
        "data": str(job.data_folder),
        "run": str(job.run_folder),
        "device": str(job.device),
        "rows": kind,
        "packs": len(job.train_split),
        "pairs": job.sizes.num_groups,
        "eval_pairs": sum(job.held_out.split.groups_per_pack),
        **{f"eval_{one.name}_pairs": sum(one.split.groups_per_pack) for one in job.eval_sets if one.name is not None},
        "epochs": job.config.train.max_epochs,
        "steps": job.total_steps,
        "pairs_per_step": job.config.train.pairs_per_step or round(job.sizes.num_groups / steps_per_epoch, 1),
        **_ranks(job),
        "parameters": job.memory.num_parameters,
        "trained_parameters": job.memory.sizes.trained,
        **_memory(job.memory),
        "memory_have_gib": round(have / GIB, 2),
        "memory_fits": what_fits(job, have),
        **_disk(need_of(job)),
        "disk_have_gib": None if disk is None else round(disk / GIB, 2),
    }


def _ranks(job: Job) -> dict[str, Any]:
    """How many share the work, and how evenly the data lets them; nothing of one process alone."""
    if job.spread.processes == 1:
        return {}
    kind, limit = job.batch_choice.kind, job.config.data.max_packed_length
    steps = islice(plan(job.sizes, job.config.train, kind, limit, job.spread.ranks), _STEPS)
    return {
        "processes": job.spread.processes,
        "spread": job.spread.told,
        "data_parallel_ranks": job.spread.ranks,
        "slowest_over_mean": round(slowest_over_mean((step.forwards for step in steps), job.sizes, kind), 3),
    }


def _memory(memory: MemoryEstimate) -> dict[str, Any]:
    """What a step needs, by what for; `other` is for the update, a checkpoint's copies and the process itself."""
    parts = ("weights", "gradients", "states", "activations", "other")
    return {
        "tokens_per_forward": memory.tokens,
        **{f"memory_{part}_gib": round(getattr(memory, part) / GIB, 3) for part in parts},
        "memory_need_gib": round(memory.total / GIB, 2),
    }


def _disk(need: DiskNeed) -> dict[str, Any]:
    """What the run writes: so many checkpoints at a time, and the model folder."""
    return {
        "checkpoints_at_once": need.at_once,
        "disk_checkpoint_gib": round(need.one / GIB, 3),
        "disk_model_gib": round(need.model / GIB, 3),
        "disk_need_gib": round(need.total / GIB, 2),
    }
