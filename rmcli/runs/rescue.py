"""A model folder out of a checkpoint: for runs that ended before theirs was written."""

from pathlib import Path

from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.model import model_folder, optim
from rmcli.model.load import load_model
from rmcli.model.network import score_head
from rmcli.runs import checkpoint
from rmcli.runs.folder import CONFIG_FILE
from rmcli.tokens.tokenizer import load_tokenizer


def export_checkpoint(step_folder: Path, folder: Path) -> None:
    """Write the model of `RUN/checkpoints/step-N` to `folder`, as its run would have.

    Raises RmcliError where that is no checkpoint, or something is at `folder` already.
    """
    toml_file = step_folder.absolute().parent.parent / CONFIG_FILE
    if not (step_folder / model_folder.OF_CHECKPOINT).is_file() or not toml_file.is_file():
        raise RmcliError(f"{step_folder} is no checkpoint of a run", "give RUN/checkpoints/step-N")
    if folder.exists():
        raise RmcliError(f"{folder} exists", "name another folder")
    config = resolve(None, [toml_file]).config
    reward = load_tokenizer(config.model)
    network = load_model(config.model, reward, config.train.seed, kind="padded")
    optimizer = optim.build_optimizer(network, score_head(network), config.train)  # it holds the masters' low bits
    checkpoint.load(step_folder, checkpoint.state_of(network, optimizer, 0))
    optim.restore_float32(optimizer)
    model_folder.export(network, reward, toml_file.read_text(encoding="utf-8"), folder)
