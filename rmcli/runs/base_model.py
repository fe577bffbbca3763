"""The model that a run's adapters lie beside: loaded again at each start and export, and proven to be the same."""

from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.config.sections import Config
from rmcli.model import adapter, adapter_folder
from rmcli.model.load import load_model
from rmcli.records import BatchKind
from rmcli.runs import backbone
from rmcli.tokens.tokenizer import RewardTokenizer


def load_with_adapters(config: Config, reward: RewardTokenizer, run_folder: Path, kind: BatchKind) -> Any:
    """The base in main memory with adapters that have no effect yet; what a later start proves it by is kept.

    Raises RmcliError where it is not the base of this run any more.
    """
    is_known = (run_folder / backbone.FOLDER).is_dir()
    name = str(config.model.pretrained_model_name_or_path)
    model = config.model
    if is_known:  # by a path that holds from everywhere
        name = backbone.frozen_of(run_folder).get("model", name)
        model = model.model_copy(update={"pretrained_model_name_or_path": name})
    with output.said_already(is_known):
        network = load_model(model, reward, config.train.seed, kind, "cpu")
    digest = adapter.digest(network)
    if is_known:
        backbone.check_frozen(run_folder, digest, name)
    else:
        backbone.keep(run_folder, network, reward, {"model": adapter_folder.absolute(name), "digest": digest})
    adapter.put(network, config, reward)
    return network
