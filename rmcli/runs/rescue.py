"""A model folder out of a checkpoint: for runs that ended before theirs was written."""

from pathlib import Path

from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.model import model_folder
from rmcli.model.load import rebuild_network
from rmcli.runs import backbone, checkpoint, state
from rmcli.runs.folder import CONFIG_FILE
from rmcli.tokens.tokenizer import load_tokenizer


def export_checkpoint(step_folder: Path, folder: Path) -> None:
    """Write the model of `RUN/checkpoints/step-N` to `folder`, as its run would have, without base model or hub.

    Raises RmcliError where that is no checkpoint, or something is at `folder` already.
    """
    run_folder = step_folder.absolute().parent.parent
    toml_file = run_folder / CONFIG_FILE
    if not toml_file.is_file():
        raise RmcliError(f"{step_folder} is no checkpoint of a run", "give RUN/checkpoints/step-N")
    checkpoint.open_facts(step_folder)
    if folder.exists():
        raise RmcliError(f"{folder} exists", "name another folder")
    config = resolve(None, [toml_file]).config
    own = backbone.section(run_folder, config.model)
    reward = load_tokenizer(own)
    network = rebuild_network(own, config.train.seed, "padded", "cpu")
    state.read_weights(step_folder, network)
    model_folder.export(network, reward, toml_file.read_text(encoding="utf-8"), folder)
