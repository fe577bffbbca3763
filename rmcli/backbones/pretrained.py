"""transformers' loaders, asked so that no code of a model's own is run, and their failures as one line each."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.backbones import gguf_files, hub
from rmcli.backbones.internlm2.files import read_json_object
from rmcli.backbones.shards import check_shards
from rmcli.config.presets import preset_names
from rmcli.errors import RmcliError, explained_by
from rmcli.installed import install_command

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a config gives as a size, by the names that architectures have for it.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    "d_model",
)
ADAPTER_FILE = "adapter_config.json"
# gpt-oss is published in it alone, and transformers turns it into plain weights by itself.
_UNPACKED_BY_TRANSFORMERS = {"mxfp4"}


def from_pretrained(loader: Any, what: str, name: str, arguments: dict[str, Any]) -> Any:
    """`loader.from_pretrained(**arguments)`, whose many failures become one line with the model and a way out.

    `loader` is one of `backbones.internlm2.auto`, each of which says trust_remote_code=False: Python that comes with
    a model is never run and never asked about. `what` is "config", "tokenizer" or "weights".
    """
    place = Path(arguments["pretrained_model_name_or_path"])
    if "gguf_file" in arguments:
        asking = gguf_files.read_quickly()
    else:
        refuse_adapter(place, name)
        if what == "weights" and place.is_dir():
            check_shards(place)
        asking = _nothing_asked() if place.is_dir() else hub.asking()
    # Inside `asking`: the explanation looks at config.json once more.
    with asking, explained_by(lambda error: _explain(error, what, name, arguments)), _quiet_transformers():
        return loader.from_pretrained(**arguments)


@contextmanager
def explaining_sizes(name: str) -> Iterator[None]:
    """For a network that is made from a config: sizes that do not fit each other become one line."""
    with explained_by(
        lambda error: RmcliError(
            f"config.json of {name} describes no model: {_first_line(error)}", "its sizes must fit each other"
        )
    ):
        yield


@contextmanager
def _nothing_asked() -> Iterator[None]:
    yield


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No load reports and bars: what matters in them we say ourselves."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def refuse_adapter(place: Path, name: str) -> None:
    """Raise RmcliError for a folder that holds an adapter beside whole weights."""
    whole = [path for pattern in ("model*.safetensors", "pytorch_model*.bin") for path in place.glob(pattern)]
    is_named = (place / ADAPTER_FILE).is_file()  # transformers would load the base model that it names
    if whole and (is_named or any(place.glob("adapter_model.*"))):
        file = "adapter_model" if any(place.glob("adapter_model.*")) else ADAPTER_FILE
        raise RmcliError(
            f"{name} holds an adapter ({file}) beside whole weights: which of them is meant cannot be told",
            "merge the adapter into the weights (peft: merge_and_unload), or take its files out of the folder",
        )


def check_config(config: "PreTrainedConfig", name: str) -> None:
    """Raise RmcliError for a size below 1 and for quantized weights. Attention and experts become ours to name."""
    for part in (config, config.get_text_config()):
        _refuse_sizes({key: getattr(part, key, None) for key in _SIZES}, name)
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        values = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
        method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
        if method not in _UNPACKED_BY_TRANSFORMERS:
            raise RmcliError(
                f"{name} is quantized ({method}): it cannot be trained, nor scored as it was trained",
                "give the model it was made from, in 16 or 32 bits",
            )
    if isinstance(config.get_text_config(), int | float | str | list | dict):
        raise RmcliError(f"config.json of {name} has a text_config that is no object", "the file is damaged")
    # Else a config.json could name a kernel that this machine lacks, or one of the Hub, whose code would be run.
    config._attn_implementation = None
    config._experts_implementation = None


def _refuse_sizes(values: Mapping[str, Any], name: str) -> None:
    for key in _SIZES:
        value = values.get(key)
        if value is None or isinstance(value, list):  # a size per layer, in some
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RmcliError(f"config.json of {name} has {key} = {value!r}, which is no size", "the file is damaged")


def _explain(error: Exception, what: str, name: str, arguments: Mapping[str, Any]) -> RmcliError:
    from pickle import UnpicklingError

    from huggingface_hub.errors import StrictDataclassError

    first = _first_line(error)
    if "trust_remote_code" in str(error):
        return RmcliError(
            f"the {what} of {name} needs Python code of its own (auto_map), which rmcli never runs",
            "choose a model that transformers has built in, or one converted to such an architecture",
        )
    if isinstance(error, ImportError):
        hint = f"for .gguf files: {install_command('gguf')}" if "gguf_file" in arguments else "install the package"
        return RmcliError(f"the {what} of {name} needs a package: {first}", hint)
    if isinstance(error, MemoryError):
        return RmcliError(f"not enough memory to load the {what} of {name}", "free some, or choose a smaller model")
    if what == "config" and "gguf_file" not in arguments:
        values = read_json_object(arguments, "config.json")
        for part in (values, values.get("text_config")):
            if isinstance(part, Mapping):
                _refuse_sizes(part, name)
    if isinstance(error, UnpicklingError) or "PytorchStreamReader" in first or "weights_only" in str(error):
        return RmcliError(
            f"cannot load the {what} of {name}: a pickled file is damaged, or holds more than tensors: {first}",
            "download it again, or give a folder with .safetensors",
        )
    is_plain = isinstance(error, OSError | ValueError | RuntimeError | AssertionError)
    said = first if is_plain else f"{type(error).__name__}: {first}"
    if isinstance(error, StrictDataclassError):  # what is wrong stands in its last line
        said = f"{first} {str(error).splitlines()[-1].strip()}"
    return RmcliError(f"cannot load the {what} of {name}: {said}", _way_out(name))


def _way_out(name: str) -> str:
    if name in preset_names() or Path(name).exists():
        return "give a whole model folder, none of its files damaged: config.json, weights and tokenizer"
    close = difflib.get_close_matches(name, preset_names(), n=1, cutoff=0.7)
    return (f"did you mean the preset {close[0]}? Else " if close else "") + (
        "check the name and your access (hf auth login), or give a local folder or .gguf file: "
        "-s model.pretrained_model_name_or_path=PATH"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
