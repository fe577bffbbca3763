"""The bytes of a request to JSON: how deep and how many is counted before a value is built."""

import json
import re
from typing import Any, NoReturn

from rmcli.serve.limits import MAX_DEPTH
from rmcli.serve.refusal import Refused

# A string of JSON. Possessive: nothing is kept to come back to, so that its memory is none, whatever is sent.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = frozenset(b"[{")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(body: bytes | bytearray, max_values: int) -> Any:
    """The JSON value of the body. Raises Refused: 413 for too many values, 422 for what is no sound JSON."""
    _check_size(body, max_values)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refused(422, f"the body is not UTF-8: byte {error.start}", "send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused(
            422, f"the body is no JSON: {error.msg} at character {error.pos}", "GET /openapi.json has examples"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise Refused(422, f"the body has a number that cannot be read: {str(error)[:80]}") from None
    if _SURROGATE.search(body):
        _check_surrogates(value)
    return value


def _check_size(body: bytes | bytearray, max_values: int) -> None:
    """Of the body without its strings: commas and brackets bound the values, brackets the depth."""
    structure = _STRING.sub(b"", body)
    brackets = structure.translate(None, _NOT_BRACKETS)
    if structure.count(b",") + len(brackets) > 2 * max_values:
        raise Refused(413, f"the body has more than {max_values:,} JSON values", "split the request")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in _OPENING else -1
        if depth > MAX_DEPTH:
            raise Refused(422, f"the body nests deeper than {MAX_DEPTH} brackets", "send it flatter")


def _refuse_constant(name: str) -> NoReturn:
    raise Refused(422, f"the body holds {name}, which JSON does not have", "leave it out, or send null")


def _check_surrogates(value: Any) -> None:
    """Half of a character cannot be tokenized. Those that come in pairs are whole by now."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise Refused(
            422, f"the body holds \\u{ord(half):04x}, half of a character (a lone surrogate)", "send whole characters"
        ) from None
