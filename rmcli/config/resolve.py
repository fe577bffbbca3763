"""Layers laid over each other and checked.

Later ones win: defaults < preset < each --config < each --set. There is no environment layer.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from rmcli import output
from rmcli.config import foreign_files
from rmcli.config.about import About
from rmcli.config.files import read_json, read_toml, toml_value
from rmcli.config.foreign import advice, key_of
from rmcli.config.layers import Layer, Resolved, section_of
from rmcli.config.presets import DEFAULT_PRESET, read_about, read_preset, split_about
from rmcli.config.sections import OPTION_OF_SOURCE, SECTIONS, Config, SourceSection
from rmcli.config.sections_of_evaluation import EvalSetSection
from rmcli.config.trained import HERE, continued_layer, scored_at
from rmcli.errors import ConfigError
from rmcli.plugins import did_you_mean


def parse_source(text: str, what: str = "--source") -> SourceSection:
    """`path=FILE,map_fn=F,weight=2,max_rows=1000`, or a path alone. A comma parts only before a KEY=.

    `what` names the text in errors. Raises ConfigError for an unknown key, one given twice, no path, or a value of
    the wrong type.
    """
    parts = re.split(r",(?=[a-z_]+=)", text) if re.match(r"[a-z_]+=", text) else [f"path={text}"]
    fields = {OPTION_OF_SOURCE.get(key, key): key for key in SourceSection.model_fields}
    values: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in parts):
        if key not in fields:
            raise ConfigError(f"{what} {text!r}: unknown key {key}", did_you_mean(key, fields))
        if fields[key] in values:
            raise ConfigError(f"{what} {text!r}: {key} is given twice")
        kind = SourceSection.model_fields[fields[key]].annotation
        values[fields[key]] = value if kind in (str, str | None) else toml_value(value)
    if "path" not in values:
        raise ConfigError(f"{what} {text!r}: no path", "e.g. --source path=FILE,map_fn=F,weight=2")
    try:
        return SourceSection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = OPTION_OF_SOURCE.get(str(first["loc"][0]), str(first["loc"][0]))
        raise ConfigError(f"{what} {text!r}: {key} = {first['input']!r}: {first['msg']}") from error


def trained_model_layers(folder: Path) -> tuple[Layer, Layer]:
    """What a trained model's folder says of itself, and that it is the model to load.

    The device and the kernel it was trained on bind nobody who has the folder. A folder without rmcli.toml is
    described by the reward token of its config.json.
    """
    recorded = folder / "rmcli.toml"
    if recorded.is_file():
        base = _of_any_machine(read_config_file(recorded))
    else:
        path = folder / "config.json"
        model = scored_at(read_json(path) if path.is_file() else {})  # adapters of another tool have none
        base = Layer(f"{folder}/config.json", {"model": model}, explicit=False)
    # What trained beside packed weights ships whole; adapters lie beside packed ones again.
    packed = {} if (folder / "adapter_config.json").is_file() else {"quantization": "none"}
    return base, Layer("MODEL", {"model": {"pretrained_model_name_or_path": str(folder), **HERE, **packed}})


def _of_any_machine(told: Layer) -> Layer:
    """What rmcli.toml says without what the run chose for the machine it ran on."""
    sections = dict(told.values)
    for section, key in (("train", "device"), ("model", "attention")):
        sections[section] = {name: value for name, value in section_of(told, section).items() if name != key}
    return Layer(told.origin, sections, explicit=False)


def about_backbone(resolved: Resolved) -> About | None:
    """The [about] of the preset whose backbone `resolved` uses; None when another place names the backbone."""
    origin = resolved.origins.get("model.pretrained_model_name_or_path", "")
    return read_about(resolved.name) if origin == f"preset {resolved.name}" else None


def read_config_file(path: Path) -> Layer:
    if not path.is_file():
        raise ConfigError(f"--config {path}: no such file")
    if path.suffix in foreign_files.ENDINGS:
        output.answer(foreign_files.as_toml(path).rstrip())
        raise ConfigError(
            f"--config {path} is no TOML: it was read as another trainer's settings, and nothing was run",
            f"look at the TOML on stdout, save it as {path.stem}.toml, and give that with -c (docs/migrate.md)",
        )
    values, _ = split_about(read_toml(path), str(path))  # a copied preset brings its notes along
    if "name" in values:
        _check_name(values["name"], path)
    return Layer(str(path), values)


def _check_name(name: Any, path: Path) -> None:
    """It becomes part of a folder's name, data/F-NAME and runs/NAME-N: never a path of its own."""
    if not isinstance(name, str) or not name.strip(" .") or len(name) > 100 or not name.isprintable():
        raise ConfigError(f"{path}: name = {name!r} is no name", "a text of at most 100 printable characters")
    if name[0] in ". " or any(mark in name for mark in "/\\"):
        raise ConfigError(
            f"{path}: name = {name!r} would lead out of data/ and runs/", "no slash, and no dot or space in front"
        )


def parse_setting(setting: str) -> Layer:
    """`section.key=value`, the value as in TOML; what is no TOML value is taken as text, `none` as no value."""
    dotted, equals, text = setting.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not equals or not dot or not key:
        name = dotted.strip()
        hint = f"write -s {key_of(name)}={text or 'VALUE'}" if key_of(name) else advice(name)
        raise ConfigError(
            f"--set {setting!r} is not of the form section.key=value", hint or "e.g. --set train.lr=1e-5"
        )
    field = SECTIONS[section].model_fields.get(key) if section in SECTIONS else None
    is_a_choice = field is not None and text.strip() in get_args(field.annotation)  # where `none` is one
    value = text.strip() if is_a_choice else toml_value(text)
    return Layer(f"--set {dotted.strip()}", {section: {key: value}})


def resolve(
    preset: str | None,
    config_files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    *,
    base: Layer | None = None,
    options: Sequence[Layer] = (),
) -> Resolved:
    """Lay defaults, preset, files, options and settings over each other and check the result.

    The default preset is the lowest layer unless a config file names a model of its own, or `base` (a trained
    model's own configuration) takes its place. Where the model is the folder of a trained reward model, what that
    says of itself lies over the preset. `options` are layers from a command's own arguments.
    Raises ConfigError for unknown presets, sections and keys, wrong types and values out of range.
    """
    file_layers = [read_config_file(path) for path in config_files]
    names_model = [layer for layer in file_layers if "pretrained_model_name_or_path" in section_of(layer, "model")]
    lowest: list[Layer] = [base] if base else []
    name = preset or DEFAULT_PRESET
    if preset is not None:
        lowest.append(read_preset(preset))
    elif base is None and not names_model:
        lowest.append(read_preset(DEFAULT_PRESET))
    elif names_model:
        name = Path(names_model[-1].origin).stem
    if preset is None:
        name = next((str(layer.values["name"]) for layer in reversed(file_layers) if "name" in layer.values), name)
    asked = [*file_layers, *options, *(parse_setting(setting) for setting in settings)]
    continued = continued_layer(asked) if base is None else None
    return _merge([*lowest, *([continued] if continued else []), *asked], name)


def relayer(resolved: Resolved, layer: Layer) -> Resolved:
    """The configuration with one more layer on top."""
    below = Layer("", resolved.config.model_dump(), explicit=False)
    merged = _merge([below, layer], resolved.name)
    origins = {**resolved.origins, **dict.fromkeys(merged.explicit, layer.origin)}
    return Resolved(merged.config, resolved.name, origins, resolved.explicit | merged.explicit)


def _merge(layers: Sequence[Layer], name: str) -> Resolved:
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    explicit: set[str] = set()
    for layer in layers:
        for section, key, value in _entries(layer):
            values.setdefault(section, {})[key] = value
            origins[f"{section}.{key}"] = layer.origin
            if layer.explicit:
                explicit.add(f"{section}.{key}")
    asked = sorted(explicit & {"train.batch_size", "train.accumulative_counts"})
    if asked and "train.pairs_per_step" in origins and "train.pairs_per_step" not in explicit:
        values["train"]["pairs_per_step"] = None
        origins["train.pairs_per_step"] = f"given up for {asked[0]}"
    mode = values.get("model", {}).get("reward_token")
    found_by_template = mode in ("natural", "last")
    if found_by_template and "model.reward_token" in explicit and "model.reward_token_id" not in explicit:
        values["model"]["reward_token_id"] = None
        origins["model.reward_token_id"] = f"given up for model.reward_token = {mode}"
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _as_config_error(error, origins) from error
    return Resolved(config, name, origins, frozenset(explicit))


def _entries(layer: Layer) -> Iterator[tuple[str, str, Any]]:
    for section in layer.values:
        if section == "name":  # what outputs are called; not a setting
            continue
        if section not in SECTIONS:
            raise _unknown_section(layer, section)
        for key, value in section_of(layer, section).items():
            if key not in SECTIONS[section].model_fields:
                raise ConfigError(f"{layer.origin}: unknown key {section}.{key}", _key_hint(section, key))
            yield section, key, value


def _unknown_section(layer: Layer, section: str) -> ConfigError:
    """A table of another name, or a key that stands above the tables."""
    value = layer.values[section]
    if isinstance(value, Mapping):
        hint = advice(section) or did_you_mean(section, SECTIONS)
        return ConfigError(f"{layer.origin}: unknown section [{section}]", hint)
    key = key_of(section)
    if key is None:
        hint = advice(section) or "rmcli config lists the keys"
    else:
        table, _, name = key.partition(".")
        hint = f"write it under [{table}]: {name} = {value!r}"
    return ConfigError(f"{layer.origin}: {section} = {value!r} stands in no section", hint)


def _key_hint(section: str, key: str) -> str:
    other = key_of(key)
    if other is not None:
        return f"did you mean {other}?"
    close = difflib.get_close_matches(key, SECTIONS[section].model_fields, n=1, cutoff=0.6)
    if close and advice(key) is None:
        return f"did you mean {close[0]}?"
    return advice(key) or f"rmcli config {section} lists the keys of [{section}]"


def _as_config_error(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"][:2])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return ConfigError(f"[{dotted}] {message}" if dotted else message)
    origin = origins.get(dotted, "default")
    inside = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"][2:])
    if first["type"] == "extra_forbidden":
        fields = EvalSetSection.model_fields if dotted == "eval.sets" else SourceSection.model_fields
        hint = did_you_mean(str(first["loc"][-1]), fields)
        return ConfigError(f"unknown key {dotted}{inside} ({origin})", hint)
    return ConfigError(f"{dotted}{inside} = {first['input']!r} ({origin}): {message}")
