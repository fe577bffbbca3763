"""Map functions found by name, listed, and applied: what they return is checked and becomes a preference group.

A map function takes one row (a dict; with `rows_key` a list of rows) and returns a PreferenceGroup, or a dict in the
canonical schema (`prompt`, `chosen`, `rejected`, or `prompt`, `responses` and their ranks, scores or comparisons); it
raises Skip(reason) to leave the row out.
"""

import hashlib
import inspect
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.plugins import did_you_mean, distribution_of, entry_points, load_entry_point, load_function
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns import comparisons
from rmcli.rows.map_fns.data_sets import canonical
from rmcli.rows.map_fns.fields import MapFunction, Row, as_messages, number
from rmcli.rows.map_fns.known import AUTO, NAMED

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
    if ":" not in spec:
        known = {AUTO, *NAMED, *(point.name for point in entry_points(ENTRY_POINTS))}
        raise ConfigError(f"unknown map function {spec!r}", did_you_mean(spec, known))
    return MapFunction(load_function(spec), (), None)


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
    map_function: MapFunction, row: Row | Sequence[Row], where: str, *, best_first: bool = True
) -> PreferenceGroup:
    """Map one row, or the rows of one group, to K >= 2 conversations and their comparisons, checked.

    With `best_first` the conversations stand best first where the comparisons leave one order. Raises Skip with a
    reason when the row does not fit the function (single_response when it holds fewer than two), RmcliError with
    `where` when a user's function is broken or gives fewer than two conversations.
    """
    if map_function.rows_key is not None and not isinstance(row, Sequence):
        row = [row]
    try:
        result = map_function.function(row)
        group = result if isinstance(result, PreferenceGroup) else canonical(result)
        conversations = tuple(as_messages(conversation) for conversation in group.conversations)
        if len(conversations) > 1:
            known = PreferenceGroup(conversations, _weight(group.weight), group.comparisons)
            known = comparisons.checked(known)
            return comparisons.best_first(known) if best_first else known
    except KeyError as error:
        raise Skip(f"missing_column {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise Skip("wrong_type") from error
    except (NameError, AssertionError, ArithmeticError, RuntimeError, ImportError) as error:
        raise RmcliError(f"the map function failed on {where}: {type(error).__name__}: {error}") from error
    if map_function in NAMED.values():
        raise Skip("single_response")
    raise RmcliError(
        f"the map function gave {len(conversations)} conversations for {where}; a group has at least 2",
        "return chosen and rejected, or raise Skip(reason)",
    )


SMALLEST_WEIGHT = 1.2e-38  # below, float32 on disk has fewer digits, then none


def _weight(value: Any) -> float:
    weight = number(value, "bad_weight")
    if weight < SMALLEST_WEIGHT:
        raise Skip("bad_weight")
    return weight
