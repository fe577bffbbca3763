"""A model folder that is to be scored with: whether it is one, from its names and its config.json."""

from pathlib import Path
from typing import Any

from rmcli.backbones.adapter_files import is_adapter_folder, read_settings
from rmcli.backbones.pretrained import refuse_adapter
from rmcli.config.files import read_json
from rmcli.config.trained import names_a_head
from rmcli.errors import ConfigError

# What is no tensor in a checkpoint; in one of an earlier rmcli, which was pickled.
OF_CHECKPOINT, OF_OLD_CHECKPOINT = "checkpoint.json", ".metadata"


def check(folder: Path) -> dict[str, Any]:
    """The config.json of a trained model folder. Raises when it is none, or has no reward token or head."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ConfigError(f"model {folder}: no such folder", "give the model/ folder of a run")
    if any((folder / name).is_file() for name in (OF_CHECKPOINT, OF_OLD_CHECKPOINT)):
        shipped = folder.absolute().parent.parent / "model"
        raise ConfigError(
            f"model {folder} is a checkpoint (weights, optimizer and step), not a model folder",
            f"try {shipped}" if shipped.is_dir() else f"make a model folder of it: rmcli export {folder} -o DIR",
        )
    refuse_adapter(folder, f"model {folder}")
    if is_adapter_folder(folder) and not path.is_file():  # of another tool's training
        read_settings(folder)
        return {}
    if not path.is_file():
        run = " (it is a run folder)" if (folder / "model").is_dir() else ""
        raise ConfigError(f"model {folder}: no config.json{run}", f"try {folder / 'model'}" if run else None)
    config = read_json(path)
    if not names_a_head(config):
        raise ConfigError(
            f"model {folder} is {config.get('architectures')}, not a ...ForSequenceClassification",
            "only a trained reward model can score: rmcli train makes one",
        )
    return config
