"""The entry point, and which function each command is. Heavy imports stay inside those functions."""

import atexit
import gc
import logging
import os
import sys
from typing import Annotated

import typer

from rmcli import __version__, output
from rmcli.cli.audit import audit_command
from rmcli.cli.config import config_command
from rmcli.cli.doctor import doctor_command
from rmcli.cli.ending import one_line_for_everything
from rmcli.cli.evaluate import evaluate_command
from rmcli.cli.export import export_command
from rmcli.cli.inspect_token import inspect_token_command
from rmcli.cli.map_fns import map_fns_command
from rmcli.cli.prepare import prepare_command
from rmcli.cli.presets import presets_app
from rmcli.cli.report import report_command
from rmcli.cli.score import score_command
from rmcli.cli.serve import serve_command
from rmcli.cli.train import train_command
from rmcli.cli.verify import verify_command
from rmcli.cli.wording import Command, Group
from rmcli.parallel.word import is_one_of_others

app = typer.Typer(
    name="rmcli",
    cls=Group,
    help="Train, score and inspect reward models: packed, prefix-shared, exact.",
    epilog="rmcli COMMAND --help has examples; rmcli --install-completion completes names in this shell.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
EXAMPLES = {
    "prepare": (
        "rmcli prepare pairs.jsonl --map-fn auto",
        "rmcli prepare rows.csv --map-fn my_map.py:to_pair -p qwen3-0.6b",
        "rmcli prepare --map-fn orpo_dpo_mix_40k -o data/orpo",
        "rmcli prepare tasks:300 -p tiny -o data/try --show 1",
    ),
    "audit": ("rmcli audit data/orpo", "rmcli audit data/orpo --report audit.html"),
    "train": (
        "rmcli train --data data/orpo",
        "rmcli train -p qwen3-0.6b -s train.lr=1e-5 -o runs/first",
        "rmcli train -p llama3-8b -n",
        "rmcli train -p llama3-8b --num-processes 8",
    ),
    "score": (
        "rmcli score runs/first/model pairs.jsonl -o scores.jsonl",
        "rmcli score runs/first/model - < conversations.jsonl",
        "rmcli score runs/first/model generations.parquet -o best.jsonl --best-of 16 --min-score 0",
        "rmcli score runs/first/model generations.parquet -o pairs.jsonl --mine-pairs best_worst --min-margin 1",
    ),
    "evaluate": (
        "rmcli evaluate runs/first/model data/orpo",
        "rmcli evaluate runs/first/model pairs.jsonl --map-fn hh_rlhf --by topic --min-accuracy 0.7",
        "rmcli evaluate runs/second/model pairs.jsonl --against runs/first/model",
        "rmcli evaluate runs/first/model --suite reward-bench-2 --suite rm-bench=total_dataset.json",
    ),
    "report": (
        "rmcli report runs/first",
        "rmcli report runs/first runs/second -o report.html",
    ),
    "export": (
        "rmcli export runs/first -o my-model",
        "rmcli export runs/first/checkpoints/step-500 -o my-model --dtype bfloat16",
    ),
    "verify": ("rmcli verify runs/first/model", "rmcli verify my-model --json"),
    "serve": (
        "rmcli serve runs/first/model",
        "rmcli serve my-model --host 0.0.0.0 --port 5000 --token-file token",
    ),
    "map-fns": ("rmcli map-fns", "rmcli map-fns --wide"),
    "inspect-token": (
        "rmcli inspect-token qwen3-0.6b",
        "rmcli inspect-token ./my-model --write-preset my-model",
    ),
    "config": ("rmcli config", "rmcli config train.lr", "rmcli config loss -p tiny"),
    "doctor": ("rmcli doctor", "rmcli doctor --json"),
}
for name, command in {
    "prepare": prepare_command,
    "audit": audit_command,
    "train": train_command,
    "score": score_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "export": export_command,
    "verify": verify_command,
    "serve": serve_command,
    "map-fns": map_fns_command,
    "inspect-token": inspect_token_command,
    "config": config_command,
    "doctor": doctor_command,
}.items():
    examples = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[name])
    app.command(name, cls=Command, epilog=examples)(command)
app.add_typer(presets_app, name="presets")


def main() -> None:
    output.open_streams()
    # torch and transformers make half a million objects that live to the end. Looking through them again and again
    # takes a second of every command, and once more at its end another.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars; a download from the Hub still shows its own
    # transformers imports torchao wherever it is installed, and that tells of kernels for other machines.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except OSError as error:  # of --help and --version, which run outside the commands
        output.error(f"cannot write to stdout: {error.strerror or error}", None)
        output.give_up(sys.stdout)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        with one_line_for_everything():
            output.answer(f"rmcli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    if context.invoked_subcommand in ("train", "score", "evaluate") and is_one_of_others(os.environ):
        output.fall_silent()
