"""What is typed by habit: other trainers' options and commands are answered by name, presets by theirs."""

import difflib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from rmcli import output


class Command(TyperCommand):
    """A command that answers an option of another trainer, or a key without its section."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts)}
        for argument in args:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in known:
                _answer(name, known)
        return super().parse_args(ctx, args)


def _answer(name: str, known: set[str]) -> None:
    """Ends the command when something is known of the option; else typer says that there is none."""
    from rmcli.config.foreign import advice

    said = advice(name)
    if said is not None and not difflib.get_close_matches(name, known, n=1, cutoff=0.85):
        output.error(f"no such option: {name}", said)
        raise typer.Exit(2)


class Group(TyperGroup):
    """The commands; those that are not built yet, or have another name, say so."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            from rmcli.config.foreign import COMMANDS

            if cmd_name in COMMANDS:
                output.error(f"no command {cmd_name}", COMMANDS[cmd_name])
                raise typer.Exit(2)
        return found


class PresetsGroup(TyperGroup):
    """`rmcli presets NAME` is `rmcli presets show NAME`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)
