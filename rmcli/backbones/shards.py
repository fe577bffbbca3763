"""The files that an index of weights names: beside it, by a plain name. One that leads elsewhere is refused."""

from pathlib import Path
from typing import Any

from rmcli.config.files import read_json
from rmcli.errors import RmcliError


def shard_name(value: Any, index: str) -> str:
    """The name of a file beside `index`, which that gave as `value`. Raises RmcliError for a path or no text."""
    if not isinstance(value, str) or value in ("", ".", "..") or any(mark in value for mark in "/\\\0"):
        raise RmcliError(
            f"{index} names {str(value)[:100]!r}, which is no file beside it", "the checkpoint is damaged, or hostile"
        )
    return value


def check_shards(folder: Path) -> None:
    """Raise RmcliError where an index of the folder's weights leads out of it, or cannot be read."""
    for index in sorted([*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]):
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise RmcliError(f"{index} has no weight_map", "the checkpoint is damaged")
        for value in weight_map.values():
            shard_name(value, str(index))
