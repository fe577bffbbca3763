"""Cells of a CSV, which are all text: where a column holds numbers they are read, and an empty one is null."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")

LONGEST = 40  # characters of a number


def has_text_cells(file: str) -> bool:
    """Whether every cell of this file is text, by its name."""
    return file.removesuffix(".gz").removesuffix(".zst").endswith((".csv", ".tsv"))


def typed(row: Mapping[str, Any], numbers: Iterable[str], required: Iterable[str] = ()) -> dict[str, Any]:
    """The row with numbers where its columns hold some, and null for what is empty and not required.

    What should be a number and is none stays text, for the map function to name.
    """
    numbers, required = set(numbers), set(required)
    return {
        name: _typed(value, name in numbers, name in required - numbers) if isinstance(value, str) else value
        for name, value in row.items()
    }


def _typed(value: str, is_number: bool, is_required: bool) -> Any:
    if not value.strip() and not is_required:
        return None
    spelt = value.strip()
    if not is_number or len(spelt) > LONGEST or _NUMBER.fullmatch(spelt) is None:
        return value
    return int(spelt) if _WHOLE.fullmatch(spelt) else float(spelt)
