"""Steps whose loss or gradient norm is not finite: their update is left out, and the run stops or goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rmcli import output
from rmcli.errors import RmcliError

MOST_ROWS = 8  # that a message names


class Skipped:
    """Whether a step's update was left out, to be read one step later.

    The flag is on its way to the host when the step is queued: reading it waits for its own step, not for the next.
    """

    def __init__(self, step: int, flag: Tensor, row_ids: tuple[int, ...]) -> None:
        self.step, self.row_ids = step, row_ids
        self._flag, self._copied = flag, None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)


def stop_if_skipped(unread: Skipped | None, manifest: Mapping[str, Any]) -> None:
    """Raise RmcliError, with the step and its rows, where the update was left out."""
    if unread is not None and unread.read():
        raise RmcliError(
            f"loss or gradient of step {unread.step} is not finite ({rows_named(unread.row_ids, manifest)}); the "
            "weights were not changed by it",
            "lower train.lr, or look at these rows; -s train.nonfinite=skip leaves such steps out.",
        )


def count_skipped(skipped: Skipped, before: int, most: int, manifest: Mapping[str, Any]) -> int:
    """Steps left out so far, this one said. Raises RmcliError where they are more than `most`."""
    count = before + 1
    told = f"loss or gradient of step {skipped.step} is not finite ({rows_named(skipped.row_ids, manifest)})"
    if count > most:
        raise RmcliError(
            f"{told}: more than train.max_skipped = {most} such steps", "lower train.lr, or look at these rows."
        )
    output.warn(f"{told}: left out, {count} of at most {most}")
    return count


def rows_named(row_ids: Sequence[int], manifest: Mapping[str, Any]) -> str:
    """The first of the rows by source and number from 1 on, where the manifest knows; else by their number in all."""
    shown = row_ids[:MOST_ROWS]
    more = f" and {len(row_ids) - len(shown)} more" if len(row_ids) > len(shown) else ""
    sources = manifest.get("rows_by_source")
    if not sources or manifest.get("shard") is not None:
        return f"input rows {', '.join(map(str, shown))}{more}"
    return f"rows {', '.join(_named(row, sources) for row in shown)}{more}"


def _named(row: int, sources: Sequence[Mapping[str, Any]]) -> str:
    for source in sources:
        if row < source["in"]:
            return f"{row + 1} of {source['source']}"
        row -= source["in"]
    return str(row)
