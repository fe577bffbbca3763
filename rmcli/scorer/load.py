"""A model folder to a scorer: what it says of itself, its tokenizer, its network, how it runs conversations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rmcli.backbones.architectures import choose_batches
from rmcli.backbones.context import check_max_length, within_positions
from rmcli.config.layers import Layer, Resolved
from rmcli.config.resolve import resolve, trained_model_layers
from rmcli.config.sections import Config
from rmcli.model import hashes, model_folder, self_test
from rmcli.model.backend import check_attention
from rmcli.model.device import pick_device
from rmcli.model.load import load_model
from rmcli.parallel import world
from rmcli.parallel.agreement import on_each
from rmcli.scorer.run import Runner
from rmcli.scorer.scorer import Scorer
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_model_config, load_tokenizer


def configuration_of(
    folder: Path,
    preset: str | None = None,
    config_files: Sequence[Path] = (),
    settings: Sequence[str] = (),
    options: Sequence[Layer] = (),
) -> Resolved:
    """What a trained model's folder says of itself, under what is asked for. Raises ConfigError where it is none."""
    model_folder.check(folder)
    base, here = trained_model_layers(folder)
    return resolve(preset, config_files, settings, base=base, options=[here, *options])


def checked(resolved: Resolved, verify: bool = True) -> Resolved:
    """A trained model's configuration, within the positions that it has. `verify`: its files are as it was exported.

    On each machine one process looks at the files. Raises RmcliError where they are not.
    """
    folder = Path(str(resolved.config.model.pretrained_model_name_or_path))
    if verify:
        on_each(lambda: hashes.verify(folder) if world.local_rank() == 0 else None)
    return within_positions(resolved, load_model_config(resolved.config.model))


def load_encoder(config: Config) -> Encoder:
    """The model's tokenizer, and how its conversations are cut."""
    data = config.data
    return Encoder(
        load_tokenizer(config.model),
        data.max_length,
        data.overlong,
        max_characters=data.max_characters,
        control_tokens=data.control_tokens,
    )


def load_scorer(config: Config, encoder: Encoder, device: torch.device | None = None) -> Scorer:
    """The network on its device (None: that of `train.device`), proven to run packed rows exactly, or run without.

    Raises RmcliError where the weights are not all there, sound and those of a trained head, or the self-test fails.
    """
    device = device or pick_device(config)
    model_config = load_model_config(config.model)
    check_max_length(model_config, config.data.max_length, config.model.pretrained_model_name_or_path)
    choice = choose_batches(config.model.use_varlen_attn, model_config, config.data.max_length)
    check_attention(config, model_config, choice.kind, device)
    network: Any = load_model(config.model, encoder.reward, kind=choice.kind, device=device, for_scoring=True)
    kind = self_test.settle_batches(network, choice, config.model.dtype).kind
    pad_token_id = encoder.reward.pad_token_id
    return Scorer(Runner(network, kind, pad_token_id, config.model.dtype, config.data.max_packed_length), encoder)
