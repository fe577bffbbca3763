"""`rmcli export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rmcli import output
from rmcli.cli.options import Json, Quiet, Verbose, reports, say_next


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Layout(StrEnum):
    transformers = "transformers"
    internlm2 = "internlm2"
    peft = "peft"


@reports
def export_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|CHECKPOINT", help="A run, for its newest checkpoint, or RUN/checkpoints/step-N."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The model folder to write.")],
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of the weights.")] = Dtype.float32,
    layout: Annotated[
        Layout,
        typer.Option(
            "--format", help="Names of files and weights: transformers', InternLM2's own, or adapters alone."
        ),
    ] = Layout.transformers,
    no_held_out: Annotated[
        bool, typer.Option("--no-held-out", help="No conversations of the run's data in golden.jsonl.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in -o.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a model folder of a checkpoint; needs no base model, hub or GPU. One of adapters needs its base model."""
    from rmcli.runs.checkpoint import step_of
    from rmcli.ship.export import Run, export, export_adapter
    from rmcli.ship.place import check_adapters, check_target, data_of, find_checkpoint

    checkpoint = find_checkpoint(source)
    check_target(out, checkpoint, overwrite)
    run_folder = checkpoint.absolute().parent.parent
    run = Run.of(run_folder, data_of(run_folder), not no_held_out)
    if layout is Layout.peft:
        check_adapters(run.config, dtype.value)
        export_adapter(run, run.adapted(checkpoint), out)
    else:
        export(run, run.network_of(checkpoint), out, dtype.value, layout is Layout.internlm2, step_of(checkpoint))
    if json:
        output.answer_json(
            {"model": str(out), "checkpoint": str(checkpoint), "dtype": dtype.value, "format": layout.value}
        )
    else:
        output.answer(str(out))
    say_next("verify", str(out))
