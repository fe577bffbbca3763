"""`rmcli presets`."""

from typing import TYPE_CHECKING, Annotated

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    Preset,
    Quiet,
    Settings,
    Verbose,
    Wide,
    reports,
    same_configuration,
    say_next,
)
from rmcli.cli.wording import Command, PresetsGroup

if TYPE_CHECKING:
    from rmcli.config.layers import Resolved


presets_app = typer.Typer(
    cls=PresetsGroup,
    help="List the presets, or show one.",
    epilog="\b\nExamples:\n  rmcli presets\n  rmcli presets tiny\n  rmcli presets -p tiny -s train.lr=1e-3",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@presets_app.callback(invoke_without_command=True)
@reports
def presets_command(
    context: typer.Context,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    wide: Wide = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the presets; with a preset, file or setting, show that configuration. Nothing is ever written."""
    if context.invoked_subcommand is not None:
        return
    from rmcli.config.presets import DEFAULT_PRESET, preset_names, read_about
    from rmcli.config.resolve import resolve

    if preset or config or set_:
        _show_preset(resolve(preset, config or (), set_ or ()), json, same_configuration(preset, config, set_))
        return
    every = [(resolve(name), read_about(name)) for name in preset_names()]
    if json:
        output.answer_json({r.name: {**r.config.model_dump(), "about": about.model_dump()} for r, about in every})
        return
    rows = [
        [
            r.name + (" (default)" if r.name == DEFAULT_PRESET else ""),
            r.config.model.pretrained_model_name_or_path,
            about.embedding_rows,
            r.config.model.reward_token,
            str(r.config.model.reward_token_id),
            about.pad_token or "none",
            f"{r.config.train.lr:g}",
            about.verified,
        ]
        for r, about in every
    ]
    columns = ["preset", "backbone", "embedding rows", "reward token", "id", "pad", "lr", "verified"]
    output.table(columns, rows, to_answer=True, keep=("preset", "backbone", "verified"), wide=wide)
    output.say("next: rmcli presets show NAME")


@presets_app.command("show", cls=Command, epilog="\b\nExamples:\n  rmcli presets show llama3-8b")
@reports
def presets_show_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the default preset.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show a preset: facts on its backbone, then each key with its origin."""
    from rmcli.config.resolve import resolve

    resolved = resolve(name or preset, config or (), set_ or ())
    again = same_configuration(name or preset or (None if config else resolved.name), config, set_)
    _show_preset(resolved, json, again)


def _show_preset(resolved: "Resolved", as_json: bool, again: list[str]) -> None:
    from rmcli.config.resolve import about_backbone

    backbone = about_backbone(resolved)
    about = {} if backbone is None else backbone.model_dump()
    if as_json:
        output.answer_json({**resolved.config.model_dump(), **({"about": about} if about else {})})
    else:
        for key, value in about.items():
            output.answer(f"# {key}: {'none' if value is None else value}")
        output.answer(resolved.toml(with_origins=True).rstrip())
    say_next("prepare", "--map-fn", "F", *again)
