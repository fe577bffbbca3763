"""peft's folder of adapters: adapter_config.json and adapter_model.safetensors, the head and a trained row with them.

peft's names are the network's, after `base_model.model.` and without the adapter's own name.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rmcli.backbones.adapter_files import SETTINGS, WEIGHTS, read_settings
from rmcli.config.sections import ModelSection
from rmcli.errors import RmcliError
from rmcli.model import adapter

_PREFIX, _OWN_NAME = "base_model.model.", f".{adapter.NAME}"


def write(network: Any, base: ModelSection, folder: Path) -> None:
    """Both files, of a network with adapters. `base` names the model they belong to. Raises OSError."""
    settings = json.loads(json.dumps(network.adapter_settings.to_dict(), default=_plainly))
    settings |= {
        "base_model_name_or_path": absolute(str(base.pretrained_model_name_or_path)),
        "revision": base.revision,
        "inference_mode": True,
        "modules_to_save": ["score"],
    }
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    weights = {
        _peft_name(name): weight.detach().cpu().contiguous() for name, weight in adapter.trained(network).items()
    }
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def absolute(name: str) -> str:
    """A folder by a path that holds from everywhere; a name on the Hub as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _plainly(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _peft_name(name: str) -> str:
    return _PREFIX + name.replace(_OWN_NAME, "")


def put(folder: Path, network: Any) -> None:
    """Give the base model's network the folder's adapters, head and row. Raises RmcliError where they do not fit."""
    settings = read_settings(folder)
    stored = _stored(folder)
    if _PREFIX + "score.weight" not in stored:
        raise RmcliError(
            f"{folder} has no score.weight: without its head no score is learned",
            "train with peft's task_type SEQ_CLS, or modules_to_save = ['score']",
        )
    config = adapter.settings_from({**settings, "modules_to_save": None, "inference_mode": False})
    rows = 1 + max(config.trainable_token_indices or [0])
    if rows > len(network.get_input_embeddings().weight):  # it grew for the reward token, the one row that is read
        network.resize_token_embeddings(rows, mean_resizing=False)
    adapter.insert(network, config)
    wanted = {_peft_name(name): name for name in adapter.trained(network)}
    _refuse_others(folder, wanted.keys(), stored.keys())
    try:
        adapter.fill(network, {name: stored[key] for key, name in wanted.items()})
    except RuntimeError as error:
        raise RmcliError(
            f"{folder} does not fit its base model: {error}", "is its base model another one?"
        ) from error


def _refuse_others(folder: Path, wanted: Any, stored: Any) -> None:
    for what, names in (("has no", wanted - stored), ("has no place in its base model for", stored - wanted)):
        if names:
            raise RmcliError(
                f"{folder} {what} {min(names)}" + (f" ({len(names)} such weights)" if len(names) > 1 else ""),
                "adapters, their settings and the base model must belong together",
            )


def _stored(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RmcliError(f"{folder / WEIGHTS} cannot be read: {error}", "the file is missing or damaged") from error
