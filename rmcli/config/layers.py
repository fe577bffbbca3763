"""A layer of keys set in one place, and what many of them resolve to: values with their origins, as TOML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from rmcli.config.sections import Config
from rmcli.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """Keys set in one place. `values` is nested as in TOML; `origin` is what --dry-run shows.

    `explicit` tells what the user asked for (files, options, --set) from what merely comes with a preset.
    """

    origin: str
    values: Mapping[str, Any]
    explicit: bool = True


@dataclass(frozen=True)
class Resolved:
    """A checked configuration, the name its outputs carry, and where each key's value comes from."""

    config: Config
    name: str
    origins: Mapping[str, str]
    explicit: frozenset[str]

    def toml(self, with_origins: bool = False) -> str:
        """As TOML. It loads back equal; a key without a value is left out (with origins: a comment)."""
        document = tomlkit.document()
        document.add("name", self.name)
        for section_name, values in self.config.model_dump().items():
            table = tomlkit.table()
            for key, value in values.items():
                if value is None:
                    if with_origins:
                        table.add(tomlkit.comment(f"{key} is not set"))
                    continue
                item = toml_item(value)
                if with_origins:
                    item.comment(self.origins.get(f"{section_name}.{key}", "default"))
                table.add(key, item)
            document.add(section_name, table)
        return tomlkit.dumps(document)


def toml_item(value: Any) -> Any:
    """As tomlkit does, but a list stays inside its table: [[tables]] would swallow the keys after them."""
    if not isinstance(value, list):
        return tomlkit.item(value)
    items = tomlkit.array()
    for element in value:
        if isinstance(element, dict):
            table = tomlkit.inline_table()
            table.update(element)
            items.append(table)
        else:
            items.append(element)
    return items


def section_of(layer: Layer, section: str) -> Mapping[str, Any]:
    table = layer.values.get(section, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{layer.origin}: [{section}] must be a table, not {table!r}")
    return table
