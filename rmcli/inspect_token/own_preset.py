"""A preset of one's own (--write-preset): the model, its reward token, and the evidence as a comment."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit

from rmcli.backbones.context import num_positions
from rmcli.config.resolve import resolve
from rmcli.config.sections import ModelSection
from rmcli.errors import ConfigError
from rmcli.inspect_token.model_files import config_of
from rmcli.inspect_token.report import Report
from rmcli.inspect_token.verdict import corpus_lines, rows_lines, verdict_lines
from rmcli.output_files import OutputFile
from rmcli.tokens import evidence

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# --- a preset of one's own ---


def preset_file(name: str, overwrite: bool = False) -> OutputFile:
    """NAME.toml in the current folder. Raises ConfigError when the name is none, or the file must not be written."""
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ConfigError(
            f"--write-preset {name!r} is no name", "letters, digits, - and _: it becomes NAME.toml here"
        )
    path = Path(f"{name.removesuffix('.toml')}.toml")
    file = OutputFile(path, "preset of inspect-token", lambda text: text.startswith("# verdict: "), overwrite)
    file.check()
    return file


def write_preset(report: Report, model: ModelSection, target: OutputFile) -> None:
    """A config file for `-c`: the model, its reward token, the evidence as a comment, and keys to start from.

    Raises ConfigError when only a tokenizer was inspected.
    """
    config = config_of(model)
    if config is None:
        raise ConfigError(
            f"--write-preset: {report.name} is a tokenizer without a model",
            "give the model, and this tokenizer with -s model.tokenizer_name_or_path=FOLDER",
        )
    with target.open() as file:
        file.write(_preset_text(report, model, config))
    resolve(None, [target.path])  # what was written loads


def _preset_text(report: Report, model: ModelSection, config: "PreTrainedConfig") -> str:
    document = tomlkit.document()
    for line in [*verdict_lines(report), *rows_lines(report), *corpus_lines(report)]:
        document.add(tomlkit.comment(line))
    for missing in report.not_looked_at:
        document.add(tomlkit.comment(f"not looked at: {missing}"))
    kept = ("revision", "tokenizer_name_or_path", "random_weights")
    own = {key: getattr(model, key) for key in kept if getattr(model, key)}
    local = Path(str(model.pretrained_model_name_or_path)).expanduser()
    name = str(local.absolute()) if local.exists() else model.pretrained_model_name_or_path
    token = {"reward_token": report.best.token or evidence.NEW_TOKEN, "reward_token_id": report.best.id}
    document.add("model", tomlkit.item({"pretrained_model_name_or_path": name, **own, **token}))
    text_config = config.get_text_config()
    max_length = min(2048, num_positions(config) or 2048)
    document.add("data", tomlkit.item({"max_length": max_length, "max_packed_length": 8 * max_length}))
    document.add("train", tomlkit.item(_train_keys(text_config)))
    return tomlkit.dumps(document)


def _train_keys(config: "PreTrainedConfig") -> dict[str, Any]:
    """A learning rate by size, as the shipped presets have it."""
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    num_parameters = 12 * layers * hidden**2 + int(config.vocab_size) * hidden
    if num_parameters < 5e8:
        return {"pairs_per_step": 32, "lr": 2e-5}
    if num_parameters < 4e9:
        return {"pairs_per_step": 64, "lr": 1e-5}
    return {"pairs_per_step": 128, "lr": 5e-6, "activation_checkpointing": "full"}
