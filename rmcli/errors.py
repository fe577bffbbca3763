"""The errors a user sees. Each is one line that names what, where and the value, and a hint that mends it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED, TERMINATED = 130, 143  # exit codes of a command that a signal ended
# What ends a command, by name, as not every system has all of them. Slurm's notice before its time is up is SIGUSR1.
ENDING_SIGNALS = {"SIGINT": INTERRUPTED, "SIGTERM": TERMINATED, "SIGHUP": TERMINATED, "SIGUSR1": TERMINATED}


class RmcliError(Exception):
    """Something the user can mend. The command line prints `error: ...` and `hint: ...` and exits."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(RmcliError):
    """A wrong option, key, preset or value: exit code 2, as for any wrong usage."""

    exit_code = 2


class Stopped(RmcliError):
    """A signal ended the work, with what was kept: exit code 130 for Ctrl-C, 143 for the others."""

    def __init__(self, message: str, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class Terminated(BaseException):
    """SIGTERM or its like came: what is half-written is cleared on the way out."""


class FailedElsewhere(RmcliError):
    """Another process of this training has failed, and says why with its own exit code: this one ends in silence.

    Without a message it has ended without a word, and nobody says so yet.
    """

    WITHOUT_A_WORD = "another process of this run has ended without a word"

    def __init__(self, message: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message or self.WITHOUT_A_WORD)
        self.is_told = message is not None
        self.exit_code = exit_code


class Skip(Exception):
    """Raised by a map function to leave a row out. The row is counted under `reason` and listed in rejects.jsonl.

    `detail` says there what it was about, such as a field; `raised_at` where in a user's own function it happened.
    """

    def __init__(self, reason: str, detail: str | None = None, raised_at: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.raised_at = raised_at


@contextmanager
def explained_by(explain: Callable[[Exception], RmcliError]) -> Iterator[None]:
    """Whatever goes wrong inside becomes the error that `explain` makes of it; our own errors pass.

    The one place that catches everything, for packages whose errors have classes of their own: botocore's
    NoCredentialsError is neither an OSError nor a ValueError, and tokenizers raises Exception itself.
    """
    try:
        yield
    except RmcliError:
        raise
    except Exception as error:
        raise explain(error) from error


@contextmanager
def explained(message: str, hint: str | None = None) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line: `message` and what the package said."""
    with explained_by(
        lambda error: RmcliError(f"{message}: {' '.join(str(error).split()) or type(error).__name__}", hint)
    ):
        yield
