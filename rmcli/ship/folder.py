"""The folder that ships: a plain transformers sequence classifier whose tokenizer renders what was trained on."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel

from rmcli.backbones.internlm2.export import internlm2_config, internlm2_weights
from rmcli.errors import RmcliError
from rmcli.model.hashes import CARD_FILE, CONFIG_FILE, write_hashes
from rmcli.model.shipped_tokenizer import save_tokenizer
from rmcli.packs.staging import StagedFolder
from rmcli.ship import golden
from rmcli.ship.golden import Golden
from rmcli.ship.kept import keep_own, set_aside
from rmcli.ship.rope_keys import write_both_forms
from rmcli.ship.template import exported_template
from rmcli.tokens.tokenizer import RewardTokenizer

Layout = Literal["transformers", "internlm2", "peft"]


def write(network: PreTrainedModel, reward: RewardTokenizer, toml: str, folder: Path) -> None:
    """A model folder of a network at hand, without golden scores. Raises as `placed` does."""
    with placed(folder, num_bytes(network)) as path:
        fill(path, network, reward, toml)


@contextmanager
def placed(folder: Path, size: int) -> Iterator[Path]:
    """An empty folder to write in, which takes the place of `folder` when the context ends well.

    What its owner has put into `folder` is kept (see `keep_own`); else `folder` is put aside whole (see `set_aside`).

    Raises RmcliError, and leaves nothing, where its `size` bytes of weights cannot be written.
    """
    try:
        staged = StagedFolder(folder)
        try:
            yield staged.path
            keep_own(folder, staged.path)
            set_aside(folder)
            staged.publish(overwrite=True)
        finally:
            staged.discard()
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RmcliError(
            f"cannot write {folder}: {reason} (its weights have {size:,} bytes)", "is the disk full?"
        ) from error


def fill(
    path: Path,
    network: PreTrainedModel,
    reward: RewardTokenizer,
    toml: str,
    scored: Sequence[Golden] = (),
    layout: Layout = "transformers",
    card: str | None = None,
) -> None:
    """Write all files of a model folder into `path`. `toml` is the resolved configuration, `card` its README.md.

    Of peft's layout the weights are there already.

    Loads with AutoModelForSequenceClassification; the tokenizer's chat template ends with the reward token. The files
    are proven by the hashes in rmcli.sha256.
    """
    template = exported_template(reward)
    _tell_loaders(network.config, reward)
    if layout == "internlm2":
        _save_internlm2(network, path)
    elif layout == "peft":
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(path)
    else:
        network.save_pretrained(path)
        write_both_forms(path)
    save_tokenizer(reward, template, path)
    (path / CONFIG_FILE).write_text(toml, encoding="utf-8")
    if scored:
        golden.write(path, scored)
    if card is not None:
        (path / CARD_FILE).write_text(card, encoding="utf-8")
    mode = (path / CONFIG_FILE).stat().st_mode & 0o777
    for file in filter(Path.is_file, path.rglob("*")):
        file.chmod(mode)  # safetensors gives its files to their owner alone, whatever the umask
    write_hashes(path)


def _tell_loaders(config: PreTrainedConfig, reward: RewardTokenizer) -> None:
    """What only a folder needs to say; that it has one output, and where it is read, the network's config says."""
    # Read by sentence-transformers' CrossEncoder and vLLM's /score: else they return a sigmoid.
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    # The tokenizer declares no BOS to others; rmcli keeps it where it cuts a prompt.
    config.reward_bos_token_id = reward.tokenizer.bos_token_id


def _save_internlm2(network: PreTrainedModel, path: Path) -> None:
    """Under InternLM2's own names, which transformers lacks and rmcli and XTuner read."""
    text = json.dumps(internlm2_config(network), indent=2, sort_keys=True, ensure_ascii=False)
    (path / "config.json").write_text(text + "\n", encoding="utf-8")
    save_torch_state_dict(dict(internlm2_weights(network)), path)


def num_bytes(network: PreTrainedModel) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
