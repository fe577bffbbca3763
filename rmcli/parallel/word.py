"""Who speaks: of processes that end early one says why; the others end in silence with its exit code.

The word is a key in the store where the processes met: who sets it first speaks. Imports no torch.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from rmcli import output
from rmcli.errors import FailedElsewhere, RmcliError
from rmcli.parallel import parent

KEY, KEPT = "rmcli/word", "rmcli/kept"
FIRST_COMES_FIRST = 0.3  # seconds that others leave to rank 0, which fails of the same thing, to say it
PATIENCE = 1.0  # seconds in which the process that failed first says so
# How gloo's errors read where another process is gone; NCCL's and the store's have classes of their own.
_GONE = ("closed by peer", "reset by peer", "gloo/transport", "connection refused", "broken pipe")

_store: Any = None  # torch's; None where this process is alone
_rank = 0


@dataclass(frozen=True)
class Word:
    """Which process has said why all end, with which exit code."""

    rank: int
    message: str
    exit_code: int


def is_one_of_others(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process beside that of rank 0, which talks for all."""
    size, rank = (environment.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    return size.isdecimal() and rank.isdecimal() and int(size) > 1 and int(rank) > 0


def share(store: Any, rank: int) -> None:
    """From now on this process is one of several, which met at `store`; with None it is alone again."""
    global _store, _rank
    _store, _rank = store, rank


def read(store: Any) -> Word | None:
    """The word as it was taken; None while nobody has, or where the store is gone."""
    with suppress(RuntimeError):  # the store's process has ended
        if store.check([KEY]):
            return Word(**json.loads(store.get(KEY)))
    return None


def said() -> Word | None:
    """Why all end, where one of the processes of this run has said it."""
    return None if _store is None else read(_store)


def take(message: str, exit_code: int) -> bool:
    """Whether this process is the one that says why all end. Alone it always is. Who is not falls silent here."""
    if _store is None:
        return True
    if _rank > 0:
        time.sleep(FIRST_COMES_FIRST)
    mine = json.dumps(asdict(Word(_rank, message, exit_code)))
    try:
        is_mine = _store.compare_set(KEY, "", mine).decode() == mine
    except RuntimeError:  # rank 0 had the store, and has ended
        is_mine = True
    if is_mine:
        output.talk_again()
    else:
        output.fall_silent()
    return is_mine


def take_for_peer(error: FailedElsewhere) -> bool:
    """Whether this process says that another one is gone: where nobody does, and nobody watches over them all."""
    if error.is_told or parent.is_there():
        if not error.is_told:
            _leave_what_is_kept(error)
        output.fall_silent()
        return False
    return take(error.message, error.exit_code)


def _leave_what_is_kept(error: FailedElsewhere) -> None:
    """For the process that started this one and knows which has ended: the last checkpoint, and the way on."""
    with suppress(RuntimeError):
        _store.set(KEPT, json.dumps([error.message.removeprefix(error.WITHOUT_A_WORD), error.hint]))


def read_what_is_kept(store: Any) -> tuple[str, str | None]:
    """The end of a sentence and a hint, as one that is left has told them."""
    with suppress(RuntimeError):
        if store.check([KEPT]):
            kept, hint = json.loads(store.get(KEPT))
            return kept, hint
    return "", None


@contextmanager
def peers_explained() -> Iterator[None]:
    """What fails because another process has ended raises FailedElsewhere; who knows more gets a moment to say it."""
    try:
        yield
    except FailedElsewhere:
        raise
    except (RmcliError, RuntimeError) as error:
        # A file that several write may be said to fail where it was another process that did.
        failed = error.__cause__ if isinstance(error, RmcliError) else error
        if _store is None or not isinstance(failed, RuntimeError):
            raise
        if isinstance(error, RmcliError) and not _says_that_a_peer_is_gone(failed):
            raise
        if (word := _wait_for_word()) is not None:
            raise FailedElsewhere(f"process {word.rank}: {word.message}", word.exit_code) from error
        if _says_that_a_peer_is_gone(failed):
            raise FailedElsewhere from error
        raise


def _wait_for_word() -> Word | None:
    until = time.monotonic() + PATIENCE
    while (word := read(_store)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return word


def _says_that_a_peer_is_gone(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    said = str(error).lower()
    return isinstance(error, DistError) or any(words in said for words in _GONE)
