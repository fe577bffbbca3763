"""The keys in words: type, default and range of each, for `rmcli config` and docs/config.md."""

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from rmcli.config.sections import SECTIONS, SourceSection
from rmcli.config.sections_of_evaluation import EvalSetSection

_NAMES = {
    **{SourceSection: "text or table", EvalSetSection: "table"},
    **{str: "text", int: "whole number", float: "number", bool: "true or false"},
}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


@dataclass(frozen=True)
class Key:
    """One key of the configuration. `default` and `range` are "" where there is none."""

    name: str
    type: str
    default: str
    range: str
    description: str


def every_key() -> list[Key]:
    """All keys, in the order of the sections."""
    return [
        describe(f"{section}.{key}", field)
        for section, model in SECTIONS.items()
        for key, field in model.model_fields.items()
    ]


def describe(name: str, field: FieldInfo) -> Key:
    """A field of a section in words."""
    default = "" if field.is_required() or field.default is None else as_toml(field.default)
    bounds = [
        f"{words} {value:g}"
        for part in field.metadata
        for bound, words in _BOUNDS.items()
        if (value := getattr(part, bound, None)) is not None
    ]
    if get_origin(field.annotation) is list:
        bounds += [
            f"{words} {value} entries"
            for part in field.metadata
            for bound, words in _LENGTHS.items()
            if (value := getattr(part, bound, None)) is not None
        ]
    return Key(name, type_name(field.annotation), default, ", ".join(bounds), str(field.description))


def as_toml(value: Any) -> str:
    """A default as it is written in TOML."""
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def type_name(annotation: Any) -> str:
    """A type in words; of a choice, the choices."""
    if get_origin(annotation) is Literal:
        return ", ".join(f'"{choice}"' for choice in get_args(annotation))
    if annotation == int | str | None:
        return "whole number or text"
    if get_origin(annotation) in (Union, types.UnionType):  # a choice or none is a Union
        return type_name(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is list:
        return f"list of {type_name(get_args(annotation)[0])}"
    return _NAMES[annotation]
