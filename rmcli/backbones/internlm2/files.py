"""Where the files of an InternLM2 checkpoint are: in a folder, or on the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.config.files import read_json

if TYPE_CHECKING:
    pass

# --- where files are ---

LOCATION = ("pretrained_model_name_or_path", "revision")


def find_file(arguments: Mapping[str, Any], name: str, needed: bool = False) -> Path | None:
    """A file of the folder or of the Hub's repository. None, or OSError when it is needed, where there is none."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        arguments["pretrained_model_name_or_path"],
        name,
        revision=arguments.get("revision"),
        _raise_exceptions_for_missing_entries=needed,
    )
    return None if found is None else Path(found)


def read_json_object(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file. Raises ConfigError when it holds none."""
    path = find_file(arguments, name)
    return {} if path is None else read_json(path)
