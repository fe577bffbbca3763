"""Whether the run folder's file system has room for what a run writes: checkpoints and the model folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rmcli import output
from rmcli.config.sections import TrainSection
from rmcli.errors import RmcliError
from rmcli.model.memory import NetworkSizes, checkpoint_bytes, checkpoint_weights
from rmcli.runs import checkpoint
from rmcli.train.job import Job


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run writes. A new checkpoint stands beside the kept ones until it is whole; the model is last."""

    one: int  # checkpoint
    model: int  # folder, and the one of the best evaluation
    kept: int  # checkpoints at the end of the run
    at_once: int  # checkpoints while the last one is written
    best: int = 0  # weights of the best evaluation, and of the one before it

    @property
    def least(self) -> int:
        """One checkpoint beside the model folder: without it nothing that was trained is safe."""
        return self.one + self.model

    @property
    def total(self) -> int:
        return self.best + max(self.at_once * self.one, self.kept * self.one + self.model)


def disk_need(sizes: NetworkSizes, train: TrainSection, total_steps: int) -> DiskNeed:
    """Of a whole run. A weight has 4 bytes in a model folder."""
    saves = -(-total_steps // train.save_steps)  # the last step's is always written
    return DiskNeed(
        one=checkpoint_bytes(sizes, train),
        model=4 * sizes.num_parameters * (1 if train.best is None else 2),
        kept=min(saves, train.save_total_limit),
        at_once=min(saves, train.save_total_limit + 1),
        best=0 if train.best is None else 2 * checkpoint_weights(sizes, train),
    )


def need_of(job: Job) -> DiskNeed:
    return disk_need(job.memory.sizes, job.config.train, job.total_steps)


def free_disk(folder: Path) -> int | None:
    """Bytes free where `folder` is or would be made. None of a file system that counts none, as /sys and some mounts.

    Raises OSError.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    usage = shutil.disk_usage(place)
    return usage.free if usage.total else None


def check_disk(job: Job) -> None:
    """Before anything is written. Raises RmcliError where not even one checkpoint has room beside the model folder.

    A run folder that has a checkpoint already needs room for the model only: nothing can be lost any more. What does
    not hold all checkpoints that are asked for is a warning: others may free some space meanwhile.
    """
    need, have, there = need_of(job), free_disk(job.run_folder), _of_checkpoints(job.run_folder)
    if have is None:
        return
    least = need.model if there else need.least
    if least > have:
        what = "the model needs" if there else "one checkpoint and the model need"
        raise RmcliError(
            f"not enough room for {job.run_folder}: {what} {least:,} bytes, and {have:,} are free there",
            f"free some space, or choose another disk with -o{'' if there else _smaller_checkpoint(job)}",
        )
    if need.total > have + there:
        output.warn(
            f"{need.at_once} checkpoints at a time and the model need {need.total:,} bytes, and {have + there:,} are "
            f"free for {job.run_folder} and its checkpoints: it will be full; {_fewer(need, have + there)}"
        )


def _of_checkpoints(run_folder: Path) -> int:
    found = checkpoint.list_checkpoints(run_folder)
    return sum(path.stat().st_size for folder in found for path in folder.rglob("*") if path.is_file())


def _smaller_checkpoint(job: Job) -> str:
    if job.config.train.optimizer == "adamw_8bit":
        return ""
    eight = job.config.train.model_copy(update={"optimizer": "adamw_8bit"})
    needed = disk_need(job.memory.sizes, eight, job.total_steps).least
    return f"; train.optimizer=adamw_8bit needs {needed:,} bytes"


def _fewer(need: DiskNeed, have: int) -> str:
    """The most checkpoints to keep that fit, while another is written; with one, the model beside it."""
    limit = min(have // need.one - 1, (have - need.model) // need.one)
    return f"train.save_total_limit={limit} fits" if limit >= 1 else "only one checkpoint fits (train.save_steps)"
