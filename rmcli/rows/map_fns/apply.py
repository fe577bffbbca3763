"""Map functions found by name, listed, and applied: what they return is checked and becomes a preference group.

A map function takes one row (a dict; with `rows_key` a list of rows) and returns a PreferenceGroup, or a dict in the
canonical schema (`prompt`, `chosen`, `rejected`, or `prompt`, `responses` and their ranks, scores or comparisons); it
raises Skip(reason) to leave the row out.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.plugins import did_you_mean, distribution_of, entry_points, load_entry_point, load_function
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns import comparisons
from rmcli.rows.map_fns.beside import BESIDE, with_columns_beside
from rmcli.rows.map_fns.cells import typed
from rmcli.rows.map_fns.contract import OF_CONVERSATIONS, Contract, Watched
from rmcli.rows.map_fns.data_sets import CANONICAL_COLUMNS, CANONICAL_NUMBERS, PAIR_COLUMNS, canonical
from rmcli.rows.map_fns.fields import MapFunction, Row, as_messages, number
from rmcli.rows.map_fns.known import AUTO, NAMED, ONE_CONVERSATION
from rmcli.rows.map_fns.own_function import place_of, result_of

ENTRY_POINTS = "rmcli.map_fns"  # the group in which an installed package offers map functions


def find_map_function(spec: str | None) -> MapFunction:
    """The map function of that name, of a plugin, or the one `module:function` or `file.py:function` points to.

    Raises ConfigError when there is none, a plugin does not load, or for `auto`, which needs a row: see `recognise`.
    """
    if spec == AUTO:
        raise ConfigError("the map function auto needs rows to look at", "name one with --map-fn")
    offered = [point for point in entry_points(ENTRY_POINTS) if point.name == spec]
    if spec is None:
        raise ConfigError("no map function", f"give --map-fn, {did_you_mean('', NAMED)}, or file.py:function")
    if spec in NAMED:
        for point in offered:
            output.warn(f"{distribution_of(point)} offers a map function {spec}: not used, rmcli has its own")
        return NAMED[spec]
    if len(offered) > 1:
        raise ConfigError(
            f"map function {spec!r} is offered by {' and '.join(map(distribution_of, offered))}",
            f"name the function itself: {' or '.join(point.value for point in offered)}",
        )
    if offered:
        return _of_plugin(offered[0])
    if spec.endswith(".py"):
        raise ConfigError(f"map function {spec!r} names a file and no function in it", _functions_of(spec))
    if ":" not in spec:
        known = {AUTO, *NAMED, *(point.name for point in entry_points(ENTRY_POINTS))}
        raise ConfigError(f"unknown map function {spec!r}", did_you_mean(spec, known))
    return MapFunction(load_function(spec), (), None)


def _functions_of(file: str) -> str:
    """A hint with what can be named in a user's file, which is read and not run."""
    try:
        body = ast.parse(Path(file).expanduser().read_bytes()).body
    except OSError as error:
        return f"{file} cannot be read: {error.strerror}"
    except (SyntaxError, ValueError) as error:
        return f"{file} is no Python: {error}"
    names = [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return f"write {file}:FUNCTION, one of {', '.join(names)}" if names else f"{file} has no function"


def _of_plugin(point: EntryPoint) -> MapFunction:
    found = load_entry_point(point, "map function")
    if isinstance(found, MapFunction):
        return found
    if not callable(found):
        raise ConfigError(
            f"map function {point.name!r}: {point.value} of {distribution_of(point)} is a {type(found).__name__}",
            "the entry point must name a function or a MapFunction",
        )
    return MapFunction(found, (), None)


def listing() -> list[dict[str, Any]]:
    """Every map function that can be named, built in and of plugins, for `rmcli map-fns`. No plugin is imported."""
    own = [
        {
            "name": name,
            "columns": list(known.columns),
            "default_source": known.default_source,
            "description": known.description,
            "from": "rmcli",
        }
        for name, known in NAMED.items()
    ]
    plugins = [
        {
            "name": point.name,
            "columns": None,
            "default_source": None,
            "description": "not used, rmcli has its own" if point.name in NAMED else point.value,
            "from": distribution_of(point),
        }
        for point in entry_points(ENTRY_POINTS)
    ]
    return own + plugins


def source_sha256(map_function: MapFunction) -> str:
    """sha256 of the function's text, as manifests keep it. Raises ConfigError for what has none: a builtin, say."""
    try:
        return hashlib.sha256(inspect.getsource(map_function.function).encode("utf-8")).hexdigest()
    except (TypeError, OSError) as error:
        raise ConfigError(f"map function {map_function.function!r} has no source", "write it as a def") from error


def apply(
    map_function: MapFunction,
    row: Row | Sequence[Row],
    where: str,
    *,
    best_first: bool = True,
    contract: Contract | None = None,
    text_cells: bool = False,
) -> PreferenceGroup:
    """Map one row, or the rows of one group, to K >= 2 conversations and their comparisons, checked.

    With `best_first` the conversations stand best first where the comparisons leave one order. `contract` notes what
    is not read. `text_cells`: the row is of a CSV. Raises Skip with a reason when the row does not fit the function
    (single_response when it holds fewer than two), RmcliError with `where` when a user's function is broken or gives
    fewer than two conversations.
    """
    rows = [row] if isinstance(row, Mapping) else list(row)
    group = mapped(map_function, rows, where, contract or Contract(), text_cells)
    if len(group.conversations) > 1:
        group = comparisons.checked(replace(group, weight=_weight(group.weight)))
        return comparisons.best_first(group) if best_first else group
    if map_function in NAMED.values():
        raise Skip("single_response")
    raise RmcliError(
        f"the map function {place_of(map_function.function)} gave {len(group.conversations)} conversations for "
        f"{where}; a group has at least 2",
        "return chosen and rejected, or raise Skip(reason)",
    )


def mapped(
    map_function: MapFunction, rows: Sequence[Row], where: str, contract: Contract, text_cells: bool = False
) -> PreferenceGroup:
    """What the function makes of the rows, under the contract; nothing is known of its comparisons yet.

    Raises Skip and RmcliError.
    """
    is_own = map_function is not ONE_CONVERSATION and map_function not in NAMED.values()
    given: Sequence[Row] = rows
    if not is_own:
        if text_cells:
            given = [typed(row, map_function.numbers, map_function.columns) for row in rows]
    elif not map_function.columns:
        given = [Watched(row) for row in rows]
    if map_function.columns:
        for row in given:
            contract.check_columns(row, map_function.known_columns)
    argument = given if map_function.rows_key is not None else given[0]
    with _as_reasons(given, map_function.columns or PAIR_COLUMNS):
        result = result_of(map_function, argument, given, where) if is_own else map_function.function(argument)
        if not isinstance(result, PreferenceGroup):
            result = _from_canonical(result, given, contract, text_cells)
        elif map_function.known_columns.issuperset(BESIDE):
            result = with_columns_beside(given[0], result)
        if is_own and not map_function.columns:
            for row, watched in zip(rows, given, strict=True):
                contract.check_columns(row, watched.looked_at if isinstance(watched, Watched) else ())
        talks = tuple(as_messages(conversation) for conversation in result.conversations)
        return contract.settled(replace(result, conversations=talks))


def _from_canonical(result: Row, given: Sequence[Row], contract: Contract, text_cells: bool) -> PreferenceGroup:
    """A dict that a user's function returned. What it passes on of a conversation must be read too."""
    if text_cells:
        optional = {name: result[name] for name in CANONICAL_COLUMNS if name in result and name not in PAIR_COLUMNS}
        cells = typed(optional, CANONICAL_NUMBERS)
        if isinstance(result, Watched):
            result.update(cells)
        else:
            result = {**result, **cells}
    if not any(result is row for row in given):
        carried = {column: result[column] for column in OF_CONVERSATIONS if column in result}
        contract.check_columns(carried, CANONICAL_COLUMNS)
    return with_columns_beside(result, canonical(result))


@contextmanager
def _as_reasons(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[None]:
    """What reading a field of another shape raises becomes Skip; the column that is at fault is named."""
    try:
        yield
    except Skip as skip:
        named = _column_of(skip, rows, columns)
        if named is None or skip.raised_at is not None:
            raise
        raise named from skip.__cause__
    except KeyError as error:
        raise Skip(f"missing_column {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise Skip("wrong_type") from error


def _column_of(skip: Skip, rows: Sequence[Row], columns: Sequence[str]) -> Skip | None:
    """The same Skip about a column by name: the one whose messages are refused in the same words, or that is null."""
    cells = [(name, row[name]) for row in rows for name in columns if name in row]
    for name, value in cells:
        alone = _refusal(value) if value is not None or name != "prompt" else None  # there may be none
        if alone is not None and (alone.reason, alone.detail) == (skip.reason, skip.detail):
            return _refusal(value, name)
    nulls = [name for name, value in cells if value is None]
    if skip.reason == "wrong_type" and skip.detail is None and nulls:
        return Skip(skip.reason, f"{nulls[0]} is null")
    return None


def _refusal(value: Any, name: str = "messages") -> Skip | None:
    try:
        as_messages(value, "user", name)
    except Skip as skip:
        return skip
    return None


SMALLEST_WEIGHT = 1.2e-38  # below, float32 on disk has fewer digits, then none


def _weight(value: Any) -> float:
    weight = number(value, "bad_weight")
    if weight < SMALLEST_WEIGHT:
        raise Skip("bad_weight")
    return weight
