"""The configuration of a run for its card: the keys that are not at their default, as TOML."""

import re
from collections.abc import Mapping
from typing import Any

import tomlkit

from rmcli.config.layers import toml_item
from rmcli.config.sections import SECTIONS, Config
from rmcli.ship.card.names import name_of

_PATHS = {
    *("pretrained_model_name_or_path", "tokenizer_name_or_path", "chat_template"),
    *("sources", "path", "dataset_map_fn", "decontaminate"),
}
_TEXTS = {"system"}  # what is put before conversations may be nobody else's business
_LIKE_A_PATH = re.compile(r"[/~.\\]|[A-Za-z]:[\\/]|\w+://")


def changed_keys(config: Config, hub_name: str | None) -> str:
    """As TOML. Paths become names, but for the base model's, where that is a `hub_name`."""
    document = tomlkit.document()
    for section, values in config.model_dump().items():
        defaults = SECTIONS[section]().model_dump()
        changed = {key: value for key, value in values.items() if value is not None and value != defaults[key]}
        if changed:
            table = tomlkit.table()
            for key, value in changed.items():
                table.add(key, toml_item(_shown(key, value, hub_name)))
            document.add(section, table)
    return tomlkit.dumps(document).strip().replace("```", "'''")


def _shown(key: str, value: Any, hub_name: str | None) -> Any:
    if isinstance(value, list):
        return [_shown(key, one, hub_name) for one in value]
    if isinstance(value, Mapping):
        return {inner: _shown(inner, one, hub_name) for inner, one in value.items()}
    if not isinstance(value, str) or value == hub_name:
        return value
    if key in _TEXTS:
        return "..."
    return name_of(value) if key in _PATHS or _LIKE_A_PATH.match(value) else value
