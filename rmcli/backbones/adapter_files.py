"""A folder of adapters by peft: what its adapter_config.json says, and which model they belong to."""

from pathlib import Path
from typing import Any

from rmcli.config.files import read_json, read_toml
from rmcli.errors import RmcliError

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_folder(place: str | Path | None) -> bool:
    return place is not None and (Path(place) / SETTINGS).is_file()


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Raises RmcliError for what is no LoRA of a named base model, ConfigError for what is no JSON object."""
    path = Path(folder) / SETTINGS
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type")
        raise RmcliError(f"{path}: peft_type is {kind}, not LORA", "merge it into its base model first, with peft")
    if not isinstance(settings.get("base_model_name_or_path"), str):
        raise RmcliError(f"{path} names no base_model_name_or_path", "write the base model's name there")
    odd = next((key for key in ("lora_bias", "use_dora", "target_parameters") if settings.get(key)), None)
    if odd is None and not isinstance(settings.get("trainable_token_indices") or [], list):
        odd = "trainable_token_indices"
    if odd is not None:
        raise RmcliError(
            f"{path}: {odd} = {settings[odd]!r} is not merged here", "merge it into its base model first, with peft"
        )
    return settings


def is_packed(folder: str | Path) -> bool:
    """Whether the adapters were trained beside a base model in 4 bits, by the folder's rmcli.toml."""
    path = Path(folder) / "rmcli.toml"
    return path.is_file() and read_toml(path).get("model", {}).get("quantization") == "nf4"


def base_of(folder: str | Path) -> dict[str, Any]:
    """The keys of [model] that name the model whose adapters lie in the folder."""
    settings = read_settings(folder)
    return {
        "pretrained_model_name_or_path": settings["base_model_name_or_path"],
        "revision": settings.get("revision"),
    }
