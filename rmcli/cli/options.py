"""What the commands share: their options, errors as two lines, the configuration shown, the next command."""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmcli import output
from rmcli.cli.ending import one_line_for_everything

if TYPE_CHECKING:
    from rmcli.config.layers import Layer, Resolved

Preset = Annotated[str | None, typer.Option("-p", "--preset", metavar="NAME", help="Preset; see rmcli presets.")]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option("-c", "--config", metavar="FILE", help="TOML file over the preset; repeatable.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="KEY=VALUE", help="One key, e.g. train.lr=1e-5; repeatable."),
]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show the configuration and the plan; do nothing.")]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the audit as one HTML file with plots.")
]
Wide = Annotated[bool, typer.Option("--wide", help="All columns, however wide.")]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Go on even if a model's files are not as they were exported.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the answer, notes and errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More detail.")]


def reports(command: Callable[..., None]) -> Callable[..., None]:
    """Whatever ends the command early becomes `error:` and `hint:` lines and an exit code."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        output.set_verbosity(options.get("verbose", False) - options.get("quiet", False))
        output.doing("starting")
        try:
            with one_line_for_everything():
                command(*arguments, **options)
        finally:
            output.doing(None)

    return wrapper


def option_layer(section: str, **values: Any) -> "Layer":
    """Keys set by a command's own options; those not given are left to the other layers."""
    from rmcli.config.layers import Layer

    return Layer("command line", {section: {key: value for key, value in values.items() if value is not None}})


def show_config(resolved: "Resolved", plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.answer_json({"config": resolved.config.model_dump(), "origins": dict(resolved.origins), "plan": plan})
        return
    output.answer(resolved.toml(with_origins=True))
    output.answer("# plan")
    for key, value in plan.items():
        for one in _lines_of(value):
            output.answer(f"# {key} = {one}")


def _lines_of(value: Any) -> list[str]:
    """A value of the plan; of a list each entry, an object's values joined."""
    if not isinstance(value, list):
        return [str(value)]
    return [" | ".join(map(str, one.values())) if isinstance(one, dict) else str(one) for one in value]


def absolute_if_file(name: str | None) -> str | None:
    """A file as train, started elsewhere, can find it; a built-in name stays."""
    return str(Path(name).absolute()) if name is not None and Path(name).is_file() else name


def same_configuration(preset: str | None, files: list[Path] | None, settings: list[str] | None) -> list[str]:
    """The options that give the next command this one's configuration."""
    options = [] if preset is None else ["--preset", preset]
    options += [part for file in files or () for part in ("-c", str(file))]
    return options + [part for setting in settings or () for part in ("-s", setting)]


def say_next(*command: str) -> None:
    output.say(f"next: {shlex.join(['rmcli', *command])}")
