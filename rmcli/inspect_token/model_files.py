"""What the model's own files say: how many embedding rows there are, and which ids they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.backbones import embedding_rows, hub
from rmcli.backbones.embedding_rows import Embedding
from rmcli.backbones.weight_files import RowsUnavailableError
from rmcli.config.files import read_json
from rmcli.config.presets import pretrained_arguments
from rmcli.config.sections import ModelSection
from rmcli.tokens.evidence import uses_named_in
from rmcli.tokens.tokenizer import load_model_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- the model's files ---


def config_of(model: ModelSection) -> "PreTrainedConfig | None":
    """The model's config; none for a folder that holds a tokenizer alone."""
    folder = Path(model.pretrained_model_name_or_path or "").expanduser()
    if model.pretrained_model_name_or_path and folder.is_dir() and not (folder / "config.json").is_file():
        return None
    return load_model_config(model)


def find_embedding(model: ModelSection, config: "PreTrainedConfig | None", missing: list[str]) -> Embedding | None:
    if config is None:
        missing.append("embedding rows, config.json and generation_config.json: this is a tokenizer without a model")
        return None
    if model.random_weights:
        missing.append("embedding rows: the weights are random (model.random_weights)")
        return None
    try:
        return embedding_rows.open_embedding(str(model.pretrained_model_name_or_path), model.revision)
    except RowsUnavailableError as error:
        missing.append(f"embedding rows: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return None


def count_embedding_rows(
    config: "PreTrainedConfig | None", embedding: Embedding | None, missing: list[str]
) -> int | None:
    """The embedding's own count before the config's; a difference is said."""
    configured = None if config is None else int(config.get_text_config().vocab_size)
    if embedding is None or embedding.num_rows == configured:
        return configured
    output.warn(f"{embedding.where} has {embedding.num_rows:,} rows, the config says {configured}")
    return embedding.num_rows


def uses_in_model_files(
    model: ModelSection, config: "PreTrainedConfig | None", missing: list[str]
) -> tuple[dict[int, list[str]], int | None]:
    """Ids that config.json and generation_config.json name, with where; and a trained model's own reward token."""
    uses: dict[int, list[str]] = {}
    if config is None:
        return uses, None
    named = {"config": config.to_dict()}
    generation = _generation_config(model, missing)
    if generation is not None:
        named["generation_config"] = generation
    own_reward_id = named["config"].pop("reward_token_id", None)
    for file, values in named.items():
        for index, places in uses_named_in(file, values).items():
            uses.setdefault(index, []).extend(places)
    return uses, own_reward_id


def _generation_config(model: ModelSection, missing: list[str]) -> dict[str, Any] | None:
    arguments = pretrained_arguments(str(model.pretrained_model_name_or_path), model.revision)
    place = Path(arguments["pretrained_model_name_or_path"])
    if "gguf_file" in arguments:
        return None
    if place.is_dir():
        path = place / "generation_config.json"
        return read_json(path) if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with hub.asking():
            return read_json(Path(hf_hub_download(str(place), "generation_config.json", revision=model.revision)))
    except RemoteEntryNotFoundError:
        return None
    except OSError as error:
        missing.append(f"generation_config.json: {type(error).__name__}")
        return None
