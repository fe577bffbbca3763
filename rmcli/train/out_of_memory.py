"""Memory that runs short although the estimate has let the run begin: one line with what would help."""

from collections.abc import Iterator
from contextlib import contextmanager

from rmcli.errors import RmcliError
from rmcli.model.out_of_memory import is_out_of_memory
from rmcli.train.job import Job
from rmcli.train.memory import what_helps_most


@contextmanager
def memory_explained(job: Job, where: str = "") -> Iterator[None]:
    """Raises RmcliError in place of the error, with the size of the run's largest forward and what needs less.

    `where` says in which step and forward, as the end of a sentence. Nothing is changed or tried again: another
    setting would be another run.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        raise RmcliError(
            f"out of memory on {job.device}{where} (the run's largest forward has {job.memory.tokens:,} tokens): "
            f"{said[:200] or 'an object could not be made'}",
            _what_helps(job),
        ) from error


def _what_helps(job: Job) -> str:
    ways = what_helps_most(job)
    if not ways:
        return "a smaller backbone: no setting needs less."
    settings = ", ".join(str(way) for way in ways)
    prepared = " (data.max_packed_length is set when preparing)" if "data.max_packed_length" in settings else ""
    return f"what would need less, by the estimate: {settings}{prepared}."
