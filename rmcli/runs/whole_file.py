"""A file of a run folder that is there whole or not at all."""

import os
from pathlib import Path

from rmcli.packs.staging import sync


def write_whole(path: Path, text: str) -> None:
    """Written beside its place, synced, and put there in one step. Raises OSError, and leaves what was there."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
