"""Adapters beside frozen weights (LoRA, arXiv 2106.09685), by peft: put into a network, found there, merged.

The network stays transformers' classifier, whose linear layers are then peft's. Its head is no adapter: it trains
whole, in float32, and lies under its own name. So does the embedding row of a reserved reward token, which no text
has ever trained.
"""

import hashlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rmcli.config.sections import Config, LoraSection
from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.model import quantize
from rmcli.model.network import backbone, score_head
from rmcli.tokens.tokenizer import RewardTokenizer

NAME = "default"  # peft's, of the one adapter of each layer


def put(network: PreTrainedModel, config: Config, reward: RewardTokenizer) -> None:
    """Give a float32 network, still in main memory, what `lora` and `model.quantization` say; seeded, in place.

    Raises ConfigError without peft, and for names of no layer.
    """
    if config.model.quantization == "nf4":
        pack(network)
    torch.manual_seed(config.train.seed)
    insert(network, settings(config.lora, reward))


def reduce_frozen(network: nn.Module) -> None:
    """What is frozen is bfloat16 from here on, and computes so; adapters, row and head stay float32."""
    quantize.compute_in(network, torch.bfloat16)
    for weight in network.parameters():
        if not weight.requires_grad and weight.is_floating_point() and not hasattr(weight, "quant_type"):
            weight.data = weight.data.to(torch.bfloat16)


def pack(network: PreTrainedModel) -> None:
    """The backbone's linear layers in 4 bits, once it is moved to its device."""
    quantize.quantize(backbone(network))
    cast(Any, network).is_loaded_in_4bit = True  # read by peft


def settings(lora: LoraSection, reward: RewardTokenizer) -> Any:
    """peft's LoraConfig. A list of modules is what it names; all-linear is the backbone's, never the head."""
    return _peft().LoraConfig(
        task_type="SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        exclude_modules=["score"],
        use_rslora=lora.use_rslora,
        trainable_token_indices=[reward.reward_token_id] if reward.mode == "reserved" else None,
    )


def settings_from(values: Mapping[str, Any]) -> Any:
    """peft's LoraConfig of a stored one; what another release of peft wrote and this one has not is left out."""
    known = _peft().LoraConfig.__dataclass_fields__
    return _peft().LoraConfig(**{key: value for key, value in values.items() if key in known})


def insert(network: PreTrainedModel, config: Any) -> None:
    """Put adapters of this LoraConfig in, without effect yet; they, the row and the head alone train from here on."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that transformers will take away
            _peft().inject_adapter_in_model(config, network, NAME)
    except ValueError as error:
        if "target_modules" not in str(error).lower() and "target modules" not in str(error).lower():
            raise
        raise ConfigError(
            f"lora.target_modules = {config.target_modules!r}: {type(network).__name__} has no linear layer of such "
            "a name",
            "names are those of its modules, such as q_proj; all-linear takes every one",
        ) from error
    cast(Any, network).adapter_settings = config
    score_head(network).requires_grad_(True)
    dtype = torch.promote_types(network.dtype, torch.float32)  # what peft makes on no device stays float32
    for weight in trained(network).values():
        weight.data = weight.data.to(dtype)


def digest(network: nn.Module) -> str:
    """What a base model in float32, without adapters, is known by: hex of all its bits but the head's, by name."""
    found = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        if not name.startswith("score."):
            bits = weight.detach().contiguous().view(torch.int32)
            found.update(f"{name} {tuple(weight.shape)} {int(bits.sum(dtype=torch.int64))}\n".encode())
    return found.hexdigest()


def settings_of(network: nn.Module) -> Any | None:
    """The LoraConfig of the network's adapters; None without any."""
    return getattr(network, "adapter_settings", None)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that take gradients, by name: of adapters, row and head, or all."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


@torch.no_grad()
def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy trained weights in by name. Raises KeyError where one is missing."""
    for name, weight in trained(network).items():
        weight.copy_(weights[name])


@torch.no_grad()
def merge(network: PreTrainedModel) -> PreTrainedModel:
    """In place, a plain network in float32: weights come out of their 4 bits, and adapters are added to them."""
    peft = _peft()
    for name, module in list(network.named_modules()):
        if isinstance(module, peft.tuners.lora.LoraLayer):
            layer: Any = module
            whole: Any = quantize.whole(layer.get_base_layer())  # float32 first, then added to
            whole.weight += layer.get_delta_weight(NAME).to(whole.weight)
            network.set_submodule(name, whole)
        elif isinstance(module, peft.utils.other.TrainableTokensWrapper):
            layer = cast(Any, module).token_adapter
            embedding = layer.base_layer.float()
            embedding.weight[layer.token_indices[NAME]] = layer.trainable_tokens_delta[NAME].to(embedding.weight)
            network.set_submodule(name, embedding)
    for name, module in list(network.named_modules()):
        if quantize.is_quantized(module):
            network.set_submodule(name, quantize.whole(module))
    cast(Any, network).adapter_settings = None
    network.__dict__.pop("peft_config", None)  # else peft takes the next adapters for second ones
    return network.float()


def _peft() -> Any:
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # peft imports it where it is there
    try:
        import peft
        import peft.tuners.lora
        import peft.utils.other
    except ImportError as error:
        raise ConfigError(f"lora.r is set: peft cannot be imported: {error}", install_command("lora")) from error
    return peft
