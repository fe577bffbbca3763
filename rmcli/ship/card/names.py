"""What a card calls things: names without the folders they lay in, in one line that Markdown leaves as it is."""

import re
from typing import Any

from rmcli.rows.files import is_url

_LONGEST = 200
_FUNCTION = re.compile(r"(.*\.py):(\w+)")


def plain(value: Any) -> str:
    """One line without marks that would end a code span, a cell or a comment; a long one is cut."""
    text = " ".join(str(value).split())
    text = "".join(mark for mark in text if mark.isprintable() and mark not in "`|<>")
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def name_of(given: str) -> str:
    """The last part of a path or URL, without what a URL carries beside it; anything else as it is."""
    text = given.split("?")[0].split("#")[0] if is_url(given) else given
    if (function := _FUNCTION.fullmatch(text)) is not None:
        return f"{name_of(function[1])}:{function[2]}"
    parts = [part for part in re.split(r"[/\\]", text) if part]
    return parts[-1] if parts else text
