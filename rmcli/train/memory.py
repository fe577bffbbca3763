"""Whether a job fits into the device's memory, and which settings need less."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from rmcli.config.sections import Config
from rmcli.errors import RmcliError
from rmcli.model import limits
from rmcli.model.device import is_reduced
from rmcli.model.memory import MemoryEstimate, estimate, free_memory
from rmcli.parallel.mesh import MeshShape
from rmcli.train.job import GIB, Job

_TYPED = {"false": False}  # values that are no text


_CUT = ("parallel.data_parallel", "shard")


@dataclass(frozen=True)
class Way:
    """Settings that need less memory, as they are typed, and what the job needs with them."""

    settings: dict[str, str]
    memory: MemoryEstimate

    def __str__(self) -> str:
        return f"{' with '.join(f'{key}={value}' for key, value in self.settings.items())} ({gib(self.memory.total)})"


def gib(number: int) -> str:
    return f"{number / GIB:,.1f} GiB" if number >= GIB else f"{number / 2**20:,.0f} MiB"


def check_memory(job: Job) -> None:
    """Stop before loading what cannot fit. Raises RmcliError with need, have and what would fit."""
    _check_main_memory(job)
    have = free_memory(job.device, job.spread.processes)
    if not job.config.train.check_memory or job.memory.total <= have:
        return
    raise RmcliError(
        f"not enough memory on {job.device}: need about {gib(job.memory.total)} ({gib(job.memory.held)} for weights, "
        f"gradients and AdamW), have {gib(have)}",
        f"what would fit: {what_fits(job, have)}; train.check_memory=false tries anyway",
    )


def _check_main_memory(job: Job) -> None:
    """Adapters lie beside a base model that is read, and merged with them, as float32 in main memory."""
    need, have = 4 * job.memory.num_parameters, limits.host_memory()
    if job.has_adapters and job.config.train.check_memory and job.device.type == "cuda" and need > have:
        raise RmcliError(
            f"not enough main memory: the base model is read in float32, {gib(need)}, and {gib(have)} are free",
            "a machine with more, or a smaller backbone; train.check_memory=false tries anyway",
        )


def what_fits(job: Job, have: int) -> str:
    """The largest forward that fits into so many bytes, and, where the job's does not, the settings that let it."""
    found = []
    if (largest := _largest_forward_setting(job, have)) is not None:
        found.append(largest)
    if job.memory.total > have:
        found += [str(way) for way in _ways_together(job) if way.memory.total <= have][:1]
    return ", or ".join(found) or "a smaller backbone: no setting makes this one fit"


def what_helps_most(job: Job, number: int = 3) -> list[Way]:
    """Single settings that need less than the job does, the one that saves most first."""
    ways = [*_single_ways(job), *_half_the_forward(job)]
    best: dict[str, Way] = {}
    for way in sorted(ways, key=lambda way: way.memory.total):
        best.setdefault(next(iter(way.settings)), way)
    return [way for way in best.values() if way.memory.total < job.memory.total][:number]


def _largest_forward_setting(job: Job, have: int) -> str | None:
    """The setting of a forward's size at the largest value that fits; None where not even the smallest does."""
    memory = job.memory
    room = have - memory.held - memory.copies - memory.process
    if room < memory.update:
        return None
    key, unit = _forward_unit(job)
    value = room // memory.activations_per_token * job.spread.sequence // unit
    return f"{key} up to {value:,}" if value >= _smallest(job) else None


def _half_the_forward(job: Job) -> Iterator[Way]:
    key, unit = _forward_unit(job)
    sequence = job.spread.sequence
    value = max(_smallest(job), job.memory.tokens * sequence // unit // 2)
    yield Way({key: str(value)}, _estimate(job, job.config, min(job.memory.tokens, value * unit // sequence)))


def _forward_unit(job: Job) -> tuple[str, int]:
    """The key that says how large a forward is, and the tokens that one of it stands for."""
    config, kind = job.config, job.batch_choice.kind
    if kind == "padded":
        return "train.batch_size", 2 * config.data.max_length
    packs = 1 if config.train.pairs_per_step is not None else config.train.batch_size
    return "data.max_packed_length", packs * (2 if kind == "single" else 1)  # alone, a pair's prompt runs twice


def _smallest(job: Job) -> int:
    if job.batch_choice.kind == "padded":
        return 1
    longest = max(int(tokens.max()) for tokens in job.sizes.group_tokens)
    return max(job.config.data.max_length, longest)


def _single_ways(job: Job) -> Iterator[Way]:
    """Each value of a setting that may need less, alone."""
    for key, value in _choices(job):
        yield _way(job, {key: value})


def _ways_together(job: Job) -> Iterator[Way]:
    """Settings that may need less, one, two or three at a time; the fewest first."""
    choices = list(_choices(job))
    for number in (1, 2, 3):
        for chosen in combinations(choices, number):
            if len(settings := dict(chosen)) == number:
                yield _way(job, settings)


def _choices(job: Job) -> Iterator[tuple[str, str]]:
    """What is exact comes first."""
    train, spread = job.config.train, job.spread
    if spread.processes > 1 and spread.mesh.shard == 1:
        yield _CUT
    if job.memory.copies:
        yield "train.async_checkpoint", "false"
    if train.activation_checkpointing == "none":
        yield "train.activation_checkpointing", "selective"
    if train.activation_checkpointing != "full":
        yield "train.activation_checkpointing", "full"
    if spread.processes == 1 and train.master_weights == "float32" and is_reduced(job.config.model.dtype, job.device):
        yield "train.master_weights", "split"
    if train.optimizer == "adamw":
        yield "train.optimizer", "adamw_8bit"


def _way(job: Job, settings: dict[str, str]) -> Way:
    of_train = {key.removeprefix("train."): value for key, value in settings.items() if key.startswith("train.")}
    changed = {key: _TYPED.get(value, value) for key, value in of_train.items()}
    config = job.config.model_copy(update={"train": job.config.train.model_copy(update=changed)})
    mesh = MeshShape(1, job.spread.processes) if _CUT[0] in settings else job.spread.mesh
    return Way(settings, _estimate(job, config, job.memory.tokens, mesh))


def _estimate(job: Job, config: Config, tokens: int, mesh: MeshShape | None = None) -> MemoryEstimate:
    return estimate(job.memory.sizes, config, tokens, job.memory.several_forwards, mesh or job.spread.mesh)
