"""Why a request has no scores: one line that names what, where and the value, and a hint that mends it."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

TOO_BUSY = "send it again later, or fewer conversations at once"


class Refused(Exception):
    """The answer to a request that is not served, by its HTTP status.

    `items`: per conversation that has no score its place in the request and why.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        hint: str | None = None,
        items: Sequence[tuple[int, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = " ".join(detail.split())
        self.hint = hint
        self.items = items
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"detail": self.detail}
        if self.hint:
            found["hint"] = self.hint
        if self.items:
            found["items"] = [{"index": index, "error": error} for index, error in self.items]
        return found


def too_busy(detail: str, seconds: float) -> Refused:
    """429: it may be sent again after so many seconds."""
    return Refused(429, detail, TOO_BUSY, headers={"Retry-After": str(max(1, min(60, ceil(seconds))))})


def shown(value: Any) -> str:
    """A value as a line of an error has it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
