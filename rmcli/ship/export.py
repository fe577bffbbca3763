"""A run's weights into a model folder, with no base model, hub or device: at the end of `train`, and by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmcli import output
from rmcli.backbones.architectures import loads_only_here
from rmcli.backbones.internlm2.export import internlm2_config
from rmcli.config.resolve import resolve
from rmcli.config.sections import Config
from rmcli.errors import RmcliError
from rmcli.model import adapter, adapter_folder
from rmcli.model.load import rebuild_network
from rmcli.records import Conversation
from rmcli.runs import backbone, state
from rmcli.runs.base_model import load_with_adapters
from rmcli.runs.folder import CONFIG_FILE
from rmcli.ship import folder as folders
from rmcli.ship import golden
from rmcli.ship.card.page import card
from rmcli.ship.golden import Golden
from rmcli.ship.quick import verify_quickly
from rmcli.ship.template import exported_template
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer


@dataclass(frozen=True)
class Run:
    """What the export of a run's weights needs beside them. `held_out`: conversations of its own to score.

    `data_folder`: the prepared data, where it is at hand.
    """

    folder: Path
    toml: str
    config: Config
    reward: RewardTokenizer
    held_out: list[Conversation]
    data_folder: Path | None = None

    @classmethod
    def of(cls, folder: Path, data_folder: Path | None, ships_held_out: bool = True) -> "Run":
        """From the run folder alone; `data_folder`, where it is at hand, has the held-out conversations."""
        file = folder / CONFIG_FILE
        config = resolve(None, [file]).config
        reward = load_tokenizer(backbone.section(folder, config.model))
        special = [str(token) for token in reward.tokenizer.added_tokens_decoder.values()]
        held_out = golden.held_out(data_folder, special) if ships_held_out else []
        return cls(folder, file.read_text(encoding="utf-8"), config, reward, held_out, data_folder)

    def network_of(self, checkpoint: Path) -> Any:
        """The float32 network with a checkpoint's weights, in main memory of this process alone."""
        if self.has_adapters:
            return adapter.merge(self.adapted(checkpoint))
        network = self._network(empty=False)
        state.read_weights(checkpoint, network, alone=True)
        return network

    def adapted(self, weights: Path | Mapping[str, Tensor]) -> Any:
        """The base model with the adapters of a checkpoint, or these, beside it."""
        network = load_with_adapters(self.config, self.reward, self.folder, "padded").to("cpu").eval()
        if isinstance(weights, Path):
            state.read_weights(weights, network, alone=True)
        else:
            adapter.fill(network, weights)
        return network

    @property
    def has_adapters(self) -> bool:
        return self.config.lora.r is not None

    def network_with(self, weights: Mapping[str, Tensor]) -> Any:
        """The network of these weights themselves, by name: no copies."""
        network = self._network(empty=True)
        network.load_state_dict(weights, assign=True)
        return network

    def _network(self, empty: bool) -> Any:
        own = backbone.section(self.folder, self.config.model)
        return rebuild_network(own, self.config.train.seed, "padded", "cpu", empty)


def export(
    run: Run,
    network: Any,
    folder: Path,
    dtype: str = "float32",
    as_internlm2: bool = False,
    step: int | None = None,
) -> None:
    """Write the model folder aside, score it by plain transformers, and put it in place. The network is used up.

    `step`: that of the weights, whose evaluation the model card tells.

    Raises RmcliError, and leaves what was there, where it cannot be written, a weight does not fit into `dtype`, or
    the folder scores otherwise than the network; ConfigError for one that InternLM2's own layout cannot hold.
    """
    if as_internlm2:
        internlm2_config(network)
    output.doing(f"writing {folder}")
    by_plain = not as_internlm2 and not loads_only_here(network.config)
    text = card(run.folder, run.data_folder, run.config, run.reward, step, dtype, by_plain)
    with folders.placed(folder, folders.num_bytes(network)) as path:
        scored = _rounded_and_scored(run, network, getattr(torch, dtype))
        network.to(getattr(torch, dtype))
        folders.fill(
            path, network, run.reward, run.toml, scored, "internlm2" if as_internlm2 else "transformers", text
        )
        verify_quickly(path, network.num_parameters())


def export_adapter(run: Run, network: Any, folder: Path) -> Any:
    """Write peft's folder of a network with adapters; returns it with them merged in. Raises as `export` does."""
    output.doing(f"writing {folder}")
    size = sum(weight.numel() * weight.element_size() for weight in adapter.trained(network).values())
    with folders.placed(folder, size) as path:
        adapter_folder.write(network, run.config.model, path)
        adapter.merge(network)
        folders.fill(path, network, run.reward, run.toml, _scored(run, network), "peft")
        verify_quickly(path, network.num_parameters())
    return network


@torch.no_grad()
def _rounded_and_scored(run: Run, network: Any, dtype: torch.dtype) -> list[Golden]:
    """The golden scores of the weights as they ship; how far rounding moved them is said."""
    before = _scored(run, network)
    if dtype == torch.float32:
        return before
    name = str(dtype).removeprefix("torch.")
    for key, weight in network.named_parameters():
        weight.copy_(weight.to(dtype))
        if not weight.isfinite().all():
            raise RmcliError(f"{key} does not fit into {name}", "export with --dtype bfloat16 or float32")
    after = _scored(run, network)
    moved = max(abs(one["score"] - other["score"]) for one, other in zip(before, after, strict=True))
    output.say(f"rounded to {name}: golden scores move by {moved:.2g} at most")
    return after


def _scored(run: Run, network: Any) -> list[Golden]:
    network.set_attn_implementation("eager")
    longest = min(run.config.data.max_length, golden.MAX_LENGTH)
    talks = [*golden.conversations(), *run.held_out]
    encoder = Encoder(run.reward, longest, "drop")
    found = golden.score(network, encoder, exported_template(run.reward), talks)
    if not found:
        raise RmcliError(
            f"none of {len(talks)} golden conversations can be scored: each is refused, or over {longest} tokens",
            "data.max_length must leave room for a question and an answer",
        )
    return found
