"""`rmcli serve`."""

from pathlib import Path
from typing import Annotated

import typer

from rmcli import output
from rmcli.cli.options import (
    ConfigFiles,
    DryRun,
    Json,
    NoVerify,
    Preset,
    Quiet,
    Settings,
    Verbose,
    reports,
    show_config,
)
from rmcli.errors import ConfigError
from rmcli.installed import install_command


@reports
def serve_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model/ folder of a run, or an export.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", metavar="FILE", help="What clients must send as bearer token; else $RMCLI_SERVE_TOKEN."
        ),
    ] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Listen beyond this machine without a token.")] = False,
    max_body: Annotated[float, typer.Option("--max-body", min=0.001, help="MiB of one request.")] = 4.0,
    max_items: Annotated[int, typer.Option("--max-items", min=1, help="Conversations of one request.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of one request.")] = 262_144,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=1, help="Conversations that may wait; more are told to come again.")
    ] = 8192,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds until a request is scored.")] = 300.0,
    receive_timeout: Annotated[
        float, typer.Option("--receive-timeout", min=0.1, help="Seconds for a client to send its request.")
    ] = 30.0,
    no_verify: NoVerify = False,
    preset: Preset = None,
    config: ConfigFiles = None,
    set_: Settings = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score over HTTP, as OpenRLHF, vLLM, LLaMA-Factory and slime ask for it."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"rmcli serve: {error}", f"install it: {install_command('serve')}") from None
    from rmcli.scorer.load import checked, configuration_of
    from rmcli.serve.limits import MIB, Limits
    from rmcli.serve.run import Place, run
    from rmcli.serve.token import check_host, read_token

    token = read_token(token_file)
    check_host(host, token, no_token)
    resolved = configuration_of(model, preset, config or (), set_ or ())
    limits = Limits(int(max_body * MIB), max_items, max_tokens, max_queue, receive_timeout, timeout)
    if dry_run:
        plan = {"model": str(model), "address": f"{host}:{port}", "token": token is not None, "limits": str(limits)}
        show_config(resolved, plan, json)
        return
    resolved = checked(resolved, not no_verify)
    announce = _announce_json if json else output.answer
    run(resolved, model, Place(host, port, token), limits, announce=announce)


def _announce_json(address: str) -> None:
    output.answer_json({"address": address})
