"""The shipped presets: where they are, what each says, and the facts on its backbone."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rmcli.config.about import About
from rmcli.config.files import read_toml
from rmcli.config.layers import Layer, section_of
from rmcli.errors import ConfigError
from rmcli.plugins import did_you_mean

DEFAULT_PRESET = "smollm2-135m"
PRESETS_PLACEHOLDER = "{presets}"


def presets_folder() -> Path:
    """Where the presets are: inside an installed wheel, else beside the package."""
    inside = Path(__file__).parent.parent / "presets"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in presets_folder().glob("*.toml"))


def read_preset(name: str) -> Layer:
    return _read_preset(name)[0]


def read_about(name: str) -> About:
    """The [about] table of a preset. Raises ConfigError when the preset, the table or a key is missing or wrong."""
    return _read_preset(name)[1]


def preset_reward_tokens() -> frozenset[str]:
    """What the shipped presets have as reward token, by name."""
    tokens = (read_preset(name).values["model"].get("reward_token") for name in preset_names())
    return frozenset(token for token in tokens if token is not None)


def _read_preset(name: str) -> tuple[Layer, About]:
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}", did_you_mean(name, preset_names()))
    origin = f"preset {name}"
    values, about = split_about(read_toml(presets_folder() / f"{name}.toml"), origin)
    if about is None:
        raise ConfigError(f"{origin}: [about] is missing", f"it needs {', '.join(About.model_fields)}")
    return Layer(origin, values, explicit=False), about


def split_about(values: dict[str, Any], origin: str) -> tuple[dict[str, Any], About | None]:
    """The settings of a file and its checked [about], which is None where the file has none."""
    if "about" not in values:
        return values, None
    table = section_of(Layer(origin, values), "about")
    for key in table:
        if key not in About.model_fields:
            raise ConfigError(f"{origin}: unknown key about.{key}", did_you_mean(key, About.model_fields))
    try:
        about = About.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise ConfigError(
                f"{origin}: about.{key} is missing", About.model_fields[str(key)].description
            ) from error
        raise ConfigError(f"{origin}: about.{key} = {first['input']!r}: {first['msg']}") from error
    return {section: value for section, value in values.items() if section != "about"}, about


def pretrained_arguments(name_or_path: str, revision: str | None = None) -> dict[str, str]:
    """Arguments for `from_pretrained`: a folder, a .gguf file (as its folder and name) or a Hub id.

    Raises ConfigError when the name looks like a path and nothing is there.
    """
    expanded = name_or_path.replace(PRESETS_PLACEHOLDER, str(presets_folder()))
    path = Path(expanded).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model {name_or_path}: no such .gguf file")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        return {"pretrained_model_name_or_path": str(path)}
    looks_like_path = expanded.startswith((".", "/", "~")) or expanded.count("/") > 1 or path.exists()
    if looks_like_path:
        raise ConfigError(
            f"model {name_or_path}: no such folder",
            "give a folder with config.json, a .gguf file, or a Hub id such as org/name",
        )
    arguments = {"pretrained_model_name_or_path": expanded}
    return arguments | ({"revision": revision} if revision else {})
