"""The reward model: a transformers `*ForSequenceClassification` with one label.

What trains is what ships: the head is the model's own `score`, the backbone its base model.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from rmcli import output
from rmcli.backbones import architectures
from rmcli.backbones.adapter_files import base_of, is_adapter_folder, is_packed
from rmcli.backbones.pretrained import explaining_sizes
from rmcli.config.sections import ModelSection
from rmcli.config.trained import names_a_head
from rmcli.model import adapter, adapter_folder
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.backend import set_attention
from rmcli.model.network import score_head, trim
from rmcli.model.weights import load_stored
from rmcli.records import BatchKind
from rmcli.tokens.tokenizer import RewardTokenizer, load_model_config

_OF_HEAD = ("reward_token_id", "reward_mode")  # where it reads, in a config.json


def load_model(
    model: ModelSection,
    reward: RewardTokenizer,
    seed: int = 0,
    kind: BatchKind = "packed",
    device: torch.device | str = "cpu",
    for_scoring: bool = False,
) -> PreTrainedModel:
    """The model in float32 on `device`, set to run batches of this kind. Its head is zero unless trained before.

    With `for_scoring` the files must hold a trained head, and nothing that the model has no place for.

    With a new head the reward token's embedding is made fit to train (see prepare_reward_row). Random weights are
    drawn on the device, each kind from its own generator: drawing eight billion on a CPU takes minutes.
    """
    name = model.pretrained_model_name_or_path
    assert name is not None
    output.doing(f"loading the weights of {name}")
    register()
    config = load_model_config(model)
    architectures.ensure_classifier(config)
    if model.random_weights:
        if names_a_head(config.to_dict()):
            output.warn(f"model.random_weights = true: head and weights of the reward model {name} are left out")
        network, new_head = _random_network(config, name, seed, device), True
    elif is_adapter_folder(name):
        network, new_head = _beside_adapters(model, for_scoring), False
        # Of the head, which lies with them.
        network.config.update({key: getattr(config, key) for key in _OF_HEAD if hasattr(config, key)})
    else:
        network, new_head = load_stored(model, config, for_scoring)
    if getattr(config, "auto_map", None):
        kind_name = type(network).__name__
        output.warn(
            f"{name} comes with Python code of its own (auto_map): not run; transformers' {kind_name} is used"
        )
    head = score_head(network)
    if new_head:
        nn.init.zeros_(head.weight)
    known_id = getattr(network.config, "reward_token_id", None)  # of the checkpoint, before ours is written there
    if not new_head:
        if not for_scoring:
            output.say(f"the head of {name} is kept: training goes on from a reward model")
        _say_other_position(network.config, name, reward)
    label_for_reward(network.config, name, reward)
    forget_padding(network)
    # A trained head belongs to its own token's row as it is; another token's row may never have been trained.
    if new_head or known_id not in (None, reward.reward_token_id) or reward.grown_from is not None:
        prepare_reward_row(network, reward)
        forget_padding(network)
    if kind == "packed":
        _run_packed(network, model)
    if for_scoring and model.quantization == "nf4" and adapter.settings_of(network) is None:
        adapter.pack(network)
    return network.to(device).eval()  # pyright: ignore[reportArgumentType] (transformers wraps torch's `to`)


def _beside_adapters(model: ModelSection, for_scoring: bool) -> PreTrainedModel:
    """The base model of a folder of adapters with those merged into it; left beside it where its weights are packed.

    Merged into what they were not trained beside, such as the weights that 4 bits were made of, they score otherwise.
    """
    folder = Path(str(model.pretrained_model_name_or_path))
    base = model.model_copy(update=base_of(folder))
    network, _ = load_stored(base, load_model_config(base), for_scoring=False)
    was_packed, is_to_be = is_packed(folder), model.quantization == "nf4"
    if was_packed or (for_scoring and is_to_be):
        adapter.pack(network)
    adapter_folder.put(folder, network)
    if was_packed and is_to_be and not for_scoring:
        output.warn(
            f"{folder} was trained beside 4 bits: merged, it is packed into 4 bits anew, and scores otherwise"
        )
    return network if for_scoring and is_to_be else adapter.merge(cast(Any, network).to("cpu"))


def rebuild_network(
    model: ModelSection, seed: int, kind: BatchKind, device: torch.device | str, empty: bool = False
) -> PreTrainedModel:
    """The network that `RUN/backbone` describes, its weights still to be filled; `model` names that folder.

    With `empty` they take no memory before `shard` has cut them.
    """
    name = model.pretrained_model_name_or_path
    assert name is not None
    register()
    config = load_model_config(model)
    architectures.ensure_classifier(config)
    with init_empty_weights(include_buffers=False) if empty else nullcontext():
        network = _random_network(config, name, seed, "cpu" if empty else device)
    forget_padding(network)
    if kind == "packed":
        _run_packed(network, model)
    if not empty:
        network.to(device)  # pyright: ignore[reportArgumentType] (transformers wraps torch's `to`)
    return network.eval()


def _random_network(config: PreTrainedConfig, name: str, seed: int, device: torch.device | str) -> Any:
    config.num_labels = 1
    torch.manual_seed(seed)
    with torch.device(device), explaining_sizes(name):
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _run_packed(network: PreTrainedModel, model: ModelSection) -> None:
    """Shared-prefix attention by the configured backend, and the last layer trimmed where that is proven."""
    network.set_attn_implementation(ATTENTION_NAME)
    assert network.config._attn_implementation == ATTENTION_NAME  # choose_batches has seen to it
    set_attention(network, model.attention)
    if model.trim_last_layer and architectures.trims_last_layer(network.config):
        trim(network)


def _say_other_position(config: PreTrainedConfig, name: str, reward: RewardTokenizer) -> None:
    """A head reads what it was trained to read; at another position its scores mean something else."""
    trained_id = getattr(config, "reward_token_id", None)
    trained = str(getattr(config, "reward_mode", "last" if trained_id is None else "reserved"))
    if trained == reward.mode and (trained == "last" or trained_id in (None, reward.reward_token_id)):
        return
    there = {"last": "the last token of the template"}.get(trained, f"token {trained_id} ({trained})")
    here = f"{reward.reward_token} ({reward.reward_token_id}, {reward.mode})"
    output.warn(
        f"the head of {name} was trained at {there} and now reads {here}: its scores are not what it was trained for"
    )


def forget_padding(network: PreTrainedModel) -> None:
    """Let every row of the embedding learn: `padding_idx` would keep the pad token's gradient at zero.

    Packed rows have no padding, so a pad token is one that the text holds; where eos is the pad token (SmolLM2) it
    ends every turn, and in natural mode it is the reward token itself. In padded rows nothing follows from padding.
    """
    embedding: Any = network.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None


@torch.no_grad()
def prepare_reward_row(network: PreTrainedModel, reward: RewardTokenizer) -> None:
    """Grow the embedding when the reward token needs a row it has not, and give an untrained row a sensible start.

    A row whose norm is below 1 % of the median is untrained (Llama-3's reserved tokens): RMSNorm at zero has a slope
    of 1/sqrt(eps), so the first gradient would be hundreds of times too large. It starts as the mean of the trained
    rows. Identical rows that are not zero (SmolLM2's) are said and kept. Each change is said aloud.
    """
    token = f"{reward.reward_token} ({reward.reward_token_id})"
    row, weight = reward.reward_token_id, _embedding(network)
    num_rows = len(weight)
    norms = weight.float().norm(dim=1)
    median = norms.median()
    trained = norms >= 0.01 * median
    mean = weight[trained].float().mean(dim=0).to(weight.dtype)
    if row >= num_rows:
        network.resize_token_embeddings(reward.num_embedding_rows, mean_resizing=False)
        weight = _embedding(network)
        weight[num_rows:] = mean
        output.warn(
            f"the embedding grows from {num_rows:,} to {len(weight):,} rows for {token}; "
            f"new rows start as the mean of {int(trained.sum()):,} trained ones"
        )
        return
    if not trained[row]:
        output.warn(
            f"the embedding row of {token} is untrained (norm {float(norms[row]):.2g}, median {float(median):.2g}): "
            f"it starts as the mean of {int(trained.sum()):,} trained rows"
        )
        weight[row] = mean
        return
    same = (weight == weight[row]).all(dim=1).nonzero().flatten().tolist()
    if len(same) > 1:
        others = ", ".join(str(index) for index in same if index != row)
        output.say(f"the embedding of {reward.reward_token} ({row}) is identical to that of id {others}: kept")


def _embedding(network: PreTrainedModel) -> Tensor:
    return cast(Tensor, network.get_input_embeddings().weight)


def label_for_reward(config: PreTrainedConfig, name: str, reward: RewardTokenizer) -> None:
    """What the config of a one-label reward model says; `regression` keeps pipelines from returning a sigmoid."""
    config.name_or_path = name
    config.__dict__.pop("auto_map", None)  # its code is not exported, and who loads the folder would be asked
    config.num_labels = 1
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type = "regression"
    config.use_cache = False
    config.reward_token_id = reward.reward_token_id
    config.reward_mode = reward.mode
    # transformers pools at the last token that is not pad: with the reward token as pad it would read elsewhere.
    # It reads the text model's own config where there is one.
    config.pad_token_id = config.get_text_config().pad_token_id = reward.pad_token_id
