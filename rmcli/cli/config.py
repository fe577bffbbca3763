"""`rmcli config`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.options import ConfigFiles, Json, Preset, Quiet, Settings, Verbose, Wide, reports
from rmcli.errors import ConfigError

if TYPE_CHECKING:
    from rmcli.config.keys import Key
    from rmcli.config.layers import Resolved


@reports
def config_command(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key, a section, or a word to look for; default: all.")
    ] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    wide: Wide = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the keys of the configuration, or explain them: type, default, range, and the value they have."""
    from rmcli.config.keys import every_key
    from rmcli.config.resolve import resolve

    resolved = resolve(preset, config or (), set_ or ())
    keys = every_key()
    chosen = keys if key is None else _find(keys, key.strip())
    if json:
        output.answer_json([{**asdict(one), **_value(one, resolved)} for one in chosen])
        return
    if key is None:
        rows = [[one.name, one.default, _shown(_value(one, resolved)["value"]), one.type] for one in chosen]
        columns = ["key", "default", f"in {resolved.name}", "type"]
        output.table(columns, rows, to_answer=True, keep=columns[::2], wide=wide)
        output.say("next: rmcli config KEY")
        return
    for number, one in enumerate(chosen):
        _explain(one, resolved, first=number == 0)


def _find(keys: "list[Key]", wanted: str) -> "list[Key]":
    """By its whole name, its section, its name alone, another trainer's name, else wherever the word occurs."""
    from rmcli.config.foreign import advice, key_of

    other = key_of(wanted)
    for fits in (
        lambda one: one.name == wanted,
        lambda one: one.name.startswith(f"{wanted.strip('[]')}."),
        lambda one: one.name.endswith(f".{wanted}"),
        lambda one: one.name == other,
    ):
        found = [one for one in keys if fits(one)]
        if found:
            return found
    if advice(wanted) is not None:
        raise ConfigError(f"no key {wanted}", advice(wanted))
    found = [one for one in keys if wanted.lower() in f"{one.name} {one.description}".lower()]
    if not found:
        raise ConfigError(f"no key {wanted}, and none that speaks of it", "rmcli config lists all")
    return found


def _value(one: "Key", resolved: "Resolved") -> dict[str, Any]:
    section, _, key = one.name.partition(".")
    value = resolved.config.model_dump()[section][key]
    return {"value": value, "origin": resolved.origins.get(one.name, "default")}


def _explain(one: "Key", resolved: "Resolved", first: bool) -> None:
    value = _value(one, resolved)
    output.answer(("" if first else "\n") + one.name)
    for name, text in (
        ("type", one.type),
        ("range", one.range),
        ("default", one.default or "none"),
        ("value", f"{_shown(value['value']) or 'none'} ({value['origin']})"),
        ("meaning", one.description),
    ):
        if text:
            output.answer(output.folded(f"  {name:8} ", text))


def _shown(value: Any) -> str:
    from rmcli.config.keys import as_toml

    return "" if value is None else as_toml(value)
