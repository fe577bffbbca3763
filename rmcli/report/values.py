"""What a file of figures says, as cells of a table. Older files lack keys, others hold anything: a dash stands."""

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 and math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in sequence(value) if isinstance(one, Mapping)]


def text(value: Any) -> str:
    """Of None and of numbers that are not finite a dash."""
    is_nothing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "-" if is_nothing else str(value)


def decimal(value: Any, digits: int = 3) -> str:
    """0.871; small ones as 5.9e-06."""
    found = number(value)
    if found is None:
        return "-"
    return f"{found:.1e}" if found and abs(found) < 0.5 * 10**-digits else f"{found:,.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    return "-" if number(value) is None else f"{value:+,.{digits}f}"


def per_cent(value: Any) -> str:
    return "-" if number(value) is None else f"{value:.1%}"


def count(value: Any) -> int | str:
    found = number(value)
    return "-" if found is None else int(found)


def ends(value: Any) -> tuple[float, float] | None:
    """The two ends of an interval, or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def interval(value: Any, digits: int = 3) -> str:
    """0.855 to 0.886."""
    found = ends(value)
    return "-" if found is None else f"{found[0]:,.{digits}f} to {found[1]:,.{digits}f}"


def flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested mappings as `section.key`; an empty one is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{start}{key}.")
        else:
            found[f"{start}{key}"] = value
    return found
