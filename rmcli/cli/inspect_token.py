"""`rmcli inspect-token`."""

from collections.abc import Sequence
from pathlib import Path
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
    say_next,
    show_config,
)

if TYPE_CHECKING:
    from rmcli.config.layers import Resolved


@reports
def inspect_token_command(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|MODEL|TOKENIZER]", help="Preset, Hub id, folder or .gguf file."),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="All candidates and what is ruled out; reads the row of each.")
    ] = False,
    corpus: Annotated[
        str | None,
        typer.Option("--corpus", metavar="DATA", help="Count each in a file, folder, Hub name or prepared data."),
    ] = None,
    write_preset: Annotated[
        str | None, typer.Option("--write-preset", metavar="NAME", help="Write NAME.toml here, for -c NAME.toml.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a preset that --write-preset wrote.")
    ] = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    wide: Wide = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the vocabulary id that should be the reward token, with the evidence."""
    from rmcli.config.presets import preset_names
    from rmcli.inspect_token import own_preset
    from rmcli.inspect_token.run import run
    from rmcli.inspect_token.verdict import show

    if target is not None and preset is None and target in preset_names():
        preset, target = target, None
    resolved = _configuration(target, preset, config or (), set_ or ())
    if dry_run:
        show_config(resolved, {"inspect": resolved.config.model.pretrained_model_name_or_path}, json)
        return
    written = None if write_preset is None else own_preset.preset_file(write_preset, overwrite)
    report = run(resolved.config.model, corpus, show_all)
    if written is not None:
        own_preset.write_preset(report, resolved.config.model, written)
    if json:
        output.answer_json(report.as_dict() | ({} if written is None else {"preset": str(written.path)}))
        return
    show(report, show_all, wide)
    if written is not None:
        say_next("prepare", "--map-fn", "F", "-c", str(written.path))
    elif target is None:
        say_next("prepare", "--map-fn", "F", "--preset", resolved.name)
    else:
        output.say(
            "next: put these lines under [model] of a config file and give it with -c (or --write-preset NAME)"
        )


def _configuration(
    target: str | None, preset: str | None, files: Sequence[Path], settings: Sequence[str]
) -> "Resolved":
    """That of a preset, of a trained model's folder, or of any model or tokenizer by its name."""
    from rmcli.config.layers import Layer
    from rmcli.config.resolve import resolve, trained_model_layers

    if target is None:
        return resolve(preset, files, settings)
    if (Path(target) / "rmcli.toml").is_file():
        base, here = trained_model_layers(Path(target))
        return resolve(preset, files, settings, base=base, options=[here])
    own = Layer("MODEL", {"model": {"pretrained_model_name_or_path": target}})
    return resolve(preset, files, settings, base=own if preset is None else None, options=[own])
