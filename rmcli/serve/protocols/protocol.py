"""What a protocol is: a path, the shapes of request and answer, and how each is read and written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict, JsonValue

from rmcli.scorer.scorer import Score
from rmcli.serve.reading import Asked, Reader
from rmcli.serve.refusal import Refused, shown

Item = TypeVar("Item")
ListOf = Annotated[list[Item], Field(fail_fast=True)]  # a million wrong items are one error, not one each
Messages = ListOf[dict[str, Any]]
NULL: JsonDict = {"type": "null"}


def either(*groups: Collection[str]) -> JsonDict:
    """For the page: the fields of one group have values, and those of the others have none or are left out."""
    names = sorted({name for group in groups for name in group})
    shapes: list[JsonValue] = []
    for group in groups:
        given: dict[str, JsonValue] = {name: {"not": NULL} if name in group else NULL for name in names}
        shapes.append({"required": [*group], "properties": given})
    return {"oneOf": shapes}


class Body(BaseModel, ABC):
    """A request's JSON. Nothing is converted, and a field that is not read is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @property
    def given(self) -> set[str]:
        """Fields that have a value: clients write null for those that are not set."""
        return {name for name in self.model_fields_set if getattr(self, name) is not None}

    @property
    @abstractmethod
    def num_items(self) -> int:
        """Conversations that it asks for."""


class Problem(BaseModel):
    """A conversation of the request that has no score, and why."""

    index: int
    error: str


class Refusal(BaseModel):
    """Why there are no scores: what, where, the value; and what mends it."""

    detail: str
    hint: str | None = None
    items: list[Problem] | None = None


@dataclass(frozen=True)
class Served:
    """The model as answers name it. `applies_sigmoid`: its own activation, which regression has not."""

    name: str
    label: str
    applies_sigmoid: bool


@dataclass(frozen=True)
class Answer:
    """What a request is answered with. `values`: per conversation, or None where it has an error."""

    served: Served
    scores: Sequence[Score]
    values: Sequence[float | None]
    num_tokens: int


@dataclass(frozen=True)
class Protocol:
    """`tells_errors`: its answers have a place for what has no score; in others one bad conversation is a 422."""

    path: str
    summary: str
    body: type[Body]
    reply: Any
    examples: Mapping[str, Any]
    read: Callable[[Any, Reader], Asked]
    write: Callable[[Any, Answer], Any]
    tells_errors: bool = False


def validated(protocol: Protocol, value: Any, hints: Mapping[str, str]) -> Body:
    """The request as the protocol has it. Raises Refused (422) that names the first field that is wrong."""
    if not isinstance(value, dict):
        raise Refused(422, f"{protocol.path}: the body is a JSON object, not {shown(value)}", _fields(protocol))
    _check_names(protocol, value, hints)
    try:
        return protocol.body.model_validate(value)
    except ValidationError as error:
        raise _refusal(protocol, error) from None


def _check_names(protocol: Protocol, value: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """Before pydantic looks, which makes an error of each."""
    known = protocol.body.model_fields
    name = next((name for name in value if name not in known), None)
    if name is not None:
        raise Refused(422, f"{protocol.path} does not read {shown(name)}", hints.get(name) or _fields(protocol))


def _fields(protocol: Protocol) -> str:
    return f"its fields: {', '.join(protocol.body.model_fields)}"


def _refusal(protocol: Protocol, error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False)[0]
    place = _place(first["loc"])
    what = first["msg"].removeprefix("Value error, ").replace("a valid dictionary", "a JSON object")
    value = "" if first["type"] in ("missing", "value_error") else f", not {shown(first['input'])}"
    at = f"{place}: " if place else ""
    return Refused(422, f"{protocol.path}: {at}{what[:1].lower()}{what[1:]}{value}", _fields(protocol))


def _place(location: Sequence[Any]) -> str:
    """`query[3]`, `messages[0].role`. Which of several types a value was tried as is no place."""
    text = ""
    for part in location:
        if isinstance(part, str) and part.startswith(("str", "list[", "dict[")):
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
