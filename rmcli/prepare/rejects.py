"""The rejects of a run that writes nothing else: kept beside the folder, so that the reasons can be read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path

from rmcli.packs.writer import PackWriter
from rmcli.rows import accounting


@contextmanager
def rejects_kept(writer: PackWriter, folder: Path) -> Iterator[None]:
    """When too many rows are rejected to write anything, the rejects stay in FOLDER.rejects.jsonl, which is said."""
    try:
        yield
    except accounting.TooManyRejected as error:
        file = _free_file(folder.absolute())
        with suppress(OSError):  # the error is the thing to say
            writer.save_rejects(file)
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            hint = f"{error.hint}; each row with its reason is in {shown}"
            raise accounting.TooManyRejected(error.message, hint) from error
        raise


def _free_file(folder: Path) -> Path:
    """`FOLDER.rejects.jsonl`, with a number where that is there already and nothing that prepare wrote."""
    numbers = chain([""], map("-{}".format, count(2)))
    files = (folder.with_name(f"{folder.name}.rejects{number}.jsonl") for number in numbers)
    return next(file for file in files if not file.exists() or _holds_rejects(file))


def _holds_rejects(path: Path) -> bool:
    """Whether an earlier run left its rejects there, which may be replaced; anything else stays."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.keys() >= {"reason", "file", "line", "text"}
