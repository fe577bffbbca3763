"""What is exported, and where to: a run or one of its checkpoints in, a folder of no other use out."""

from pathlib import Path

from transformers import PreTrainedConfig

from rmcli import output
from rmcli.backbones.adapter_files import is_adapter_folder
from rmcli.backbones.architectures import loads_only_here
from rmcli.backbones.internlm2.auto import MODEL_TYPE, AutoConfig
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.presets import pretrained_arguments
from rmcli.config.sections import Config, ModelSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.model.hashes import CONFIG_FILE, HASHES_FILE
from rmcli.model.model_folder import OF_CHECKPOINT, OF_OLD_CHECKPOINT
from rmcli.packs.manifest import read_manifest
from rmcli.packs.staging import check_writable, refuse_own_folder
from rmcli.runs import backbone, checkpoint, folder, record
from rmcli.ship.kept import lost_by_replacing


def find_checkpoint(source: Path) -> Path:
    """`source`, where it is a checkpoint, else the newest one of that run; every file of it proven by its hash.

    Raises ConfigError for what is neither, and RmcliError for a damaged one or a run without the files it needs.
    """
    if not source.is_dir():
        raise ConfigError(f"{source}: no such folder", "give a run, or RUN/checkpoints/step-N")
    is_checkpoint = any((source / name).exists() for name in (OF_CHECKPOINT, OF_OLD_CHECKPOINT))
    found = source if is_checkpoint else _newest(source)
    run_folder = found.absolute().parent.parent
    for name in (folder.CONFIG_FILE, backbone.FOLDER):
        if not (run_folder / name).exists():
            raise RmcliError(f"{found} lies in no run: {run_folder} has no {name}", "give RUN/checkpoints/step-N")
    checkpoint.open_facts(found)
    return found


def check_target(target: Path, found: Path, overwrite: bool) -> None:
    """Before any work. Raises ConfigError where the folder must not be written, OSError where it cannot be."""
    kept = [found.parent.resolve(), (found.parent.parent / backbone.FOLDER).resolve()]
    if any(path in kept for path in (target.resolve(), *target.resolve().parents)):
        raise ConfigError(f"{target} lies in what the run keeps for itself", "name a folder elsewhere with -o")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file", "name a folder with -o")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise ConfigError(
                f"{target} exists and is left alone", "name a new folder with -o, or --overwrite an earlier export"
            )
        if not all((target / name).is_file() for name in (CONFIG_FILE, HASHES_FILE, "config.json")):
            raise ConfigError(f"{target} holds no exported model and is left alone", "name a new folder with -o")
        if (lost := lost_by_replacing(target)) is not None:
            raise ConfigError(
                f"{target}/{lost} was not exported, and would be lost", "move it, or name another with -o"
            )
    refuse_own_folder(target)
    check_writable(target)


def no_base_for_peft(model: ModelSection) -> str | None:
    """Why nobody could put adapters beside their base model again; None where peft can."""
    name = str(model.pretrained_model_name_or_path)
    if model.random_weights:
        return "their base model is drawn at random, and nobody else has it"
    if is_adapter_folder(name):
        return f"their base model, {name}, is a folder of adapters itself"
    if name.endswith(".gguf"):
        return "their base model is a .gguf file"
    kind = PreTrainedConfig.get_config_dict(name, revision=model.revision)[0].get("model_type")
    if kind == MODEL_TYPE or loads_only_here(from_pretrained(AutoConfig, "config", name, _place(model))):
        return f"transformers has no classifier for their base model, {name}"
    return None


def _place(model: ModelSection) -> dict[str, str]:
    return pretrained_arguments(str(model.pretrained_model_name_or_path), model.revision)


def check_adapters(config: Config, dtype: str) -> None:
    """Raises ConfigError where adapters alone cannot be exported."""
    if config.lora.r is not None and (why := no_base_for_peft(config.model)) is not None:
        raise ConfigError(f"--format peft: {why}", "leave --format out")
    if config.lora.r is None:
        raise ConfigError("--format peft: the run has no adapters (lora.r)", "leave --format out")
    if dtype != "float32":
        raise ConfigError(f"--format peft --dtype {dtype}: adapters are float32", "leave --dtype out")


def data_of(run_folder: Path) -> Path | None:
    """The prepared data that the run was started on; None where it is gone, or, which is said, another set now."""
    told = record.read(run_folder)
    data = told.get("data") if told is not None else None
    folder = data.get("folder") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(folder, str) or not Path(folder).is_dir():
        return None
    try:
        if read_manifest(Path(folder))["manifest_sha256"] == data.get("manifest_sha256"):
            return Path(folder)
        why = "another set has been prepared there since"
    except RmcliError as error:
        why = error.message
    output.warn(f"nothing of the run's data is told or scored: {why} ({folder})")
    return None


def _newest(source: Path) -> Path:
    if (source / "config.json").is_file() and (source / HASHES_FILE).is_file():
        raise ConfigError(f"{source} is a model folder already", f"rmcli verify {source} proves it")
    if not (source / folder.CONFIG_FILE).is_file():
        raise ConfigError(f"{source} is neither a run nor a checkpoint", "give a run, or RUN/checkpoints/step-N")
    found = checkpoint.latest(source)
    if found is None:
        raise RmcliError(f"{source} has no checkpoint", f"go on with it: {folder.resume_command(source)}")
    return found
