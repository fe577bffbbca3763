"""The bytes of a request to JSON: how deep and how many is counted before a value is built."""

import json
import re
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from rmcli.serve.limits import MAX_DEPTH
from rmcli.serve.refusal import Refused, shown

_BLOCK = 65_536  # bytes that are looked at together: what is counted takes no memory of the body's size
_QUOTE, _COMMA = ord('"'), ord(",")
_STEPS = np.zeros(256, dtype=np.int32)  # into a bracket, and out of it
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(body: bytes | bytearray, max_values: int) -> Any:
    """The JSON value of the body. Raises Refused: 413 for too many values, 422 for what is no sound JSON."""
    _check_size(body, max_values)
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise Refused(422, f"the body is not UTF-8: byte {error.start}", "send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused(
            422, f"the body is no JSON: {error.msg} at character {error.pos}", "GET /openapi.json has examples"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise Refused(
            422, f"the body has a number that cannot be read: {str(error)[:80]}", "send fewer digits"
        ) from None
    if _SURROGATE.search(body):
        _check_surrogates(value)
    return value


def _check_size(body: bytes | bytearray, max_values: int) -> None:
    """Outside of strings commas and brackets bound the values, and brackets the depth."""
    if b"\\" in body:  # of \\ and \" in a string none opens or ends one
        body = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    quotes = values = depth = 0
    for start in range(0, len(body), _BLOCK):
        block = np.frombuffer(body, np.uint8, min(_BLOCK, len(body) - start), start)
        counted = np.cumsum(block == _QUOTE, dtype=np.int32) + quotes
        outside = block[counted % 2 == 0]
        steps = _STEPS[outside]
        values += int((outside == _COMMA).sum()) + int(np.count_nonzero(steps))
        if values > 2 * max_values:
            raise Refused(413, f"the body has more than {max_values:,} JSON values", "split the request")
        depths = np.cumsum(steps) + depth
        if len(depths) and depths.max() > MAX_DEPTH:
            raise Refused(422, f"the body nests deeper than {MAX_DEPTH} brackets", "send it flatter")
        quotes, depth = int(counted[-1]), int(depths[-1]) if len(depths) else depth


def _refuse_constant(name: str) -> NoReturn:
    raise Refused(422, f"the body holds {name}, which JSON does not have", "leave it out, or send null")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        (doubled, _), *_ = names.most_common(1)
        raise Refused(422, f"the body has an object that names {shown(doubled)} twice", "give each name once")
    return found


def _check_surrogates(value: Any) -> None:
    """Half of a character cannot be tokenized. Those that come in pairs are whole by now."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise Refused(
            422, f"the body holds \\u{ord(half):04x}, half of a character (a lone surrogate)", "send whole characters"
        ) from None
