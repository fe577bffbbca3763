"""How a run's processes share its work: which rows each runs, and how the model's weights lie on them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rmcli.config.sections import ParallelSection
from rmcli.errors import ConfigError
from rmcli.parallel import world
from rmcli.parallel.mesh import MeshShape


@dataclass(frozen=True)
class Spread:
    """`mesh` says how weights lie on the processes; `sequence` neighbouring ones share each row."""

    mesh: MeshShape = field(default_factory=MeshShape)
    sequence: int = 1
    reason: str | None = None  # why auto has chosen this mesh

    @property
    def processes(self) -> int:
        return self.mesh.size

    @property
    def ranks(self) -> int:
        """Data-parallel ones: processes, or groups of neighbours, that see different rows."""
        return self.processes // self.sequence

    @property
    def rank(self) -> int:
        """That of this process among them."""
        return world.rank() // self.sequence

    @property
    def share(self) -> float:
        """What of a row's loss and figures this process counts: all that share the row have them."""
        return 1 / self.sequence

    @property
    def counts_rows(self) -> bool:
        """Whether this process is the first of those that share its rows, each of which has all their scores."""
        return world.rank() % self.sequence == 0

    @property
    def told(self) -> str:
        """As a user reads it, with the reason."""
        if self.processes == 1:
            return "one process"
        cut = {1: "weights replicated", self.processes: "weights sharded"}.get(
            self.mesh.shard, f"{self.mesh.replicate} copies of the weights, each on {self.mesh.shard} processes"
        )
        shared = f", {self.sequence} of them on each row" if self.sequence > 1 else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.processes} processes{shared}, {cut}{reason}"


def check_sizes(parallel: ParallelSection, processes: int) -> None:
    """Raise ConfigError for sizes that so many processes cannot have."""
    start = "start more: rmcli train --num-processes N, or torchrun"
    if processes == 1 and parallel.data_parallel == "shard":
        raise ConfigError("parallel.data_parallel = 'shard' on one process: there is nothing to cut it over", start)
    for key in ("dp_replicate_size", "sequence_parallel_size"):
        value = getattr(parallel, key) or 1
        if processes % value:
            raise ConfigError(
                f"parallel.{key} = {value} does not divide the {processes} "
                f"process{'es' if processes > 1 else ''} of this training",
                f"set it to {_divisors(processes)}" if processes > 1 else start,
            )


def _divisors(number: int) -> str:
    *first, last = [str(one) for one in range(1, number + 1) if number % one == 0]
    return f"{', '.join(first)} or {last}" if first else last


def spread_over(processes: int, parallel: ParallelSection, needs: Callable[[MeshShape], int], have: int) -> Spread:
    """`needs`: the bytes that a process needs where weights lie so; `have`: what it can have. Sizes are checked."""
    copies = parallel.dp_replicate_size or 1
    whole, cut = MeshShape(processes, 1), MeshShape(copies, processes // copies)
    sequence = parallel.sequence_parallel_size
    if processes == 1:
        return Spread()
    if parallel.data_parallel != "auto" or copies > 1:
        return Spread(whole if parallel.data_parallel == "replicate" else cut, sequence)
    fits = needs(whole) <= have
    told = (
        f"the whole model needs about {needs(whole) / 2**30:.2f} GiB a process, and {have / 2**30:.2f} GiB are free"
    )
    return Spread(whole if fits else cut, sequence, told)
