"""Calling a function that a user wrote: what it raises and what it returns, said with its file, line and row."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rmcli.errors import RmcliError, Skip
from rmcli.plugins import did_you_mean
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.contract import Watched
from rmcli.rows.map_fns.data_sets import CANONICAL_COLUMNS
from rmcli.rows.map_fns.fields import MapFunction, Row

# What a row of another shape than expected makes a function raise. Anything else is a fault of the function.
OF_ROWS = (TypeError, AttributeError, ValueError, LookupError)
HINT = "mend the function; to leave a row out, raise rmcli.errors.Skip or return None"


class Calling:
    """A context for a call into a user's code about the row at `where`.

    An exception of OF_ROWS becomes a Skip with the exception as its cause and `raised_at`, a KeyError for a column
    that the row lacks `missing_column NAME`; any other stops the run as RmcliError. Skip, RmcliError and Ctrl-C pass.
    """

    def __init__(self, function: Callable[..., Any], where: str, rows: Sequence[Row]) -> None:
        self.function, self.where, self.rows = function, where, rows

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Skip | RmcliError | KeyboardInterrupt):
            return
        place = place_of(self.function, trace)
        if isinstance(error, KeyError) and error.args and self._lacks(error.args[0]):
            raise Skip(f"missing_column {error.args[0]}", raised_at=place) from error
        if isinstance(error, OF_ROWS):
            raise Skip("wrong_type", raised_at=place) from error
        said = " ".join(str(error).split())
        raise RmcliError(
            f"the map function {place} failed on {self.where}: {type(error).__name__}{': ' if said else ''}{said}",
            HINT,
        ) from error

    def _lacks(self, key: object) -> bool:
        """Whether a row was asked for a column of this name that it has not."""
        return any(
            key in row.looked_at and key not in row if isinstance(row, Watched) else key not in row
            for row in self.rows
        )


def place_of(function: Callable[..., Any], trace: TracebackType | None = None) -> str:
    """`file.py:LINE (name)`: the line of the function's file that was running, or where the function begins."""
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", type(function).__name__)
    if code is None:
        return name
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == code.co_filename]
    return f"{Path(code.co_filename).name}:{lines[-1] if lines else code.co_firstlineno} ({name})"


def result_of(map_function: MapFunction, argument: Any, rows: Sequence[Row], where: str) -> PreferenceGroup | Row:
    """What a user's function makes of a row (or rows), if it is a group or a dict of canonical columns.

    Raises Skip (`returned_none` for None) and RmcliError for anything else, and for a misspelt key. A key that the
    function passed on from a row is no mistake.
    """
    function = map_function.function
    before = {column for row in rows for column in row}
    with Calling(function, where, rows):
        result = function(argument)
    if result is None:
        raise Skip("returned_none", raised_at=place_of(function))
    if isinstance(result, PreferenceGroup):
        return result
    if not isinstance(result, Mapping):
        if inspect.iscoroutine(result):
            result.close()  # else Python says later that it was never awaited
        raise RmcliError(
            f"the map function {place_of(function)} gave a {type(result).__name__} for {where}",
            "return a dict with prompt, chosen and rejected, or a PreferenceGroup; None leaves the row out",
        )
    for key in result:
        if key not in CANONICAL_COLUMNS and key not in before:
            raise RmcliError(
                f"the map function {place_of(function)} gave an unknown key {key!r} for {where}",
                did_you_mean(str(key), CANONICAL_COLUMNS),
            )
    return result
