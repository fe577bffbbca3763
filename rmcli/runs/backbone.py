"""`RUN/backbone`: what a run needs of the model it began with, so that going on reads neither that nor a hub.

Its config.json as the network was made, grown embedding included, and its tokenizer with the chat template that
training used. The weights are those of the checkpoints. Where most of them are frozen, beside adapters, they are the
model's own, which is then needed again: `frozen.json` tells whether it is the same.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from rmcli.config.files import read_json
from rmcli.config.sections import ModelSection
from rmcli.errors import RmcliError
from rmcli.model.shipped_tokenizer import write_tokenizer
from rmcli.packs.staging import sync
from rmcli.tokens.tokenizer import RewardTokenizer

FOLDER = "backbone"
FROZEN = "frozen.json"


def keep(
    run_folder: Path, network: PreTrainedModel, reward: RewardTokenizer, frozen: dict[str, str] | None = None
) -> None:
    """Write the folder, in one step; `frozen`: where weights that stay as they are lie, and their digest.

    Raises OSError.
    """
    folder = run_folder / FOLDER
    temporary = folder.with_name(f"{FOLDER}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        network.config.save_pretrained(temporary)
        write_tokenizer(reward.tokenizer, temporary)
        if frozen is not None:
            (temporary / FROZEN).write_text(json.dumps(frozen) + "\n", encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(folder)
        sync(run_folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def frozen_of(run_folder: Path) -> dict[str, str]:
    """{"model", "digest"} of the weights that the run's adapters lie beside."""
    return read_json(run_folder / FOLDER / FROZEN)


def check_frozen(run_folder: Path, digest: str, name: str) -> None:
    """Raises RmcliError where the weights of model `name` are not those that the run began with."""
    if frozen_of(run_folder).get("digest") != digest:
        raise RmcliError(
            f"the weights of {name} are not those that {run_folder} began with: its adapters belong to others",
            "the model's files or its revision have changed since: put them back",
        )


def section(run_folder: Path, model: ModelSection) -> ModelSection:
    """The [model] that loads config and tokenizer from there."""
    here = {
        "pretrained_model_name_or_path": str(run_folder / FOLDER),
        "tokenizer_name_or_path": None,
        "chat_template": None,
        "revision": None,
    }
    return model.model_copy(update=here)
