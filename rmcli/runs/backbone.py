"""`RUN/backbone`: what a run needs of the model it began with, so that going on reads neither that nor a hub.

Its config.json as the network was made, grown embedding included, and its tokenizer with the chat template that
training used. The weights are those of the checkpoints.
"""

import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from rmcli.config.sections import ModelSection
from rmcli.model.shipped_tokenizer import write_tokenizer
from rmcli.packs.staging import sync
from rmcli.tokens.tokenizer import RewardTokenizer

FOLDER = "backbone"


def keep(run_folder: Path, network: PreTrainedModel, reward: RewardTokenizer) -> None:
    """Write the folder, in one step. Raises OSError."""
    folder = run_folder / FOLDER
    temporary = folder.with_name(f"{FOLDER}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        network.config.save_pretrained(temporary)
        write_tokenizer(reward.tokenizer, temporary)
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        temporary.rename(folder)
        sync(run_folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def section(run_folder: Path, model: ModelSection) -> ModelSection:
    """The [model] that loads config and tokenizer from there."""
    here = {
        "pretrained_model_name_or_path": str(run_folder / FOLDER),
        "tokenizer_name_or_path": None,
        "chat_template": None,
        "revision": None,
    }
    return model.model_copy(update=here)
