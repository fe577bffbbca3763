"""TOML and JSON files and values, read; an error names the file."""

import json
import tomllib
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return value


def toml_value(text: str) -> Any:
    """The text as a TOML value; what is none is taken as text, `none` as no value."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return None if text.strip() == "none" else text.strip()


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file; a byte order mark before it is no part of it. Raises ConfigError when it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
