"""Adapters beside frozen weights (LoRA, arXiv 2106.09685), by peft: put into a network, found there, merged.

The network stays transformers' classifier, whose linear layers are then peft's. Its head is no adapter: it trains
whole, in float32, and lies under its own name. So does the reward token's row of the embedding, which may be another
than that of the base: one that was untrained, or not there.
"""

import hashlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rmcli.config.sections import Config, LoraSection
from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.model import quantize
from rmcli.model.network import backbone, score_head
from rmcli.tokens.tokenizer import RewardTokenizer

NAME = "default"  # peft's, of the one adapter of each layer
_PIECE = 2**22  # numbers looked at together


def put(network: PreTrainedModel, config: Config, reward: RewardTokenizer) -> None:
    """Give a float32 network, still in main memory, what `lora` and `model.quantization` say; seeded, in place.

    Raises ConfigError without peft, and for names of no layer.
    """
    if config.model.quantization == "nf4":
        pack(network)
    torch.manual_seed(config.train.seed)
    insert(network, settings(config.lora, reward, network))


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


def settings(lora: LoraSection, reward: RewardTokenizer, network: PreTrainedModel) -> Any:
    """peft's LoraConfig. A list of modules is what it names; all-linear is the backbone's, never the head.

    peft's own all-linear would take what experts hold as one tensor, too, which could not be merged.
    """
    names = lora.target_modules
    if names == "all-linear":
        names = _linear_names(network)
    return _peft().LoraConfig(
        task_type="SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=names,
        exclude_modules=["score"],
        use_rslora=lora.use_rslora,
        trainable_token_indices=[reward.reward_token_id],
    )


def _linear_names(network: PreTrainedModel) -> list[str]:
    """Of the modules that multiply by one matrix, gpt2's Conv1D too; without the head."""
    named = network.named_modules()
    return [name for name, module in named if isinstance(module, nn.Linear | Conv1D) and name != "score"]


def _refuse_unknown(network: PreTrainedModel, targets: Any) -> None:
    """Raises ConfigError for a name that no linear layer ends with; a text is a pattern of peft's."""
    if isinstance(targets, str):
        return
    linear = _linear_names(network)
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"lora.target_modules: {type(network).__name__} has no linear layer of the name {target}",
                f"its linear layers are {', '.join(known)}; all-linear takes every one",
            )


def settings_from(values: Mapping[str, Any]) -> Any:
    """peft's LoraConfig of a stored one; what another release of peft wrote and this one has not is left out."""
    known = _peft().LoraConfig.__dataclass_fields__
    return _peft().LoraConfig(**{key: value for key, value in values.items() if key in known})


def insert(network: PreTrainedModel, config: Any) -> None:
    """Put adapters of this LoraConfig in, without effect yet; they, the row and the head alone train from here on."""
    _refuse_unknown(network, config.target_modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of names that transformers will take away and of gpt2's layers
        _peft().inject_adapter_in_model(config, network, NAME)
    if any(type(module).__name__ == "ParamWrapper" for module in network.modules()):
        raise ConfigError(
            f"{type(network).__name__}: peft would adapt experts that are one tensor, which is not merged here",
            "name linear layers: lora.target_modules, q_proj and v_proj say",
        )
    cast(Any, network).adapter_settings = config
    score_head(network).requires_grad_(True)
    dtype = torch.promote_types(network.dtype, torch.float32)  # what peft makes on no device stays float32
    for weight in trained(network).values():
        weight.data = weight.data.to(dtype)


def digest(network: nn.Module) -> str:
    """What a base model in float32, without adapters, is known by: hex of all its bits but the head's, by name."""
    found = hashlib.sha256()
    places = torch.arange(1, _PIECE + 1)  # else numbers in another order would be the same
    for name, weight in sorted(network.named_parameters()):
        if name.startswith("score."):
            continue
        found.update(f"{name} {tuple(weight.shape)}\n".encode())
        for bits in weight.detach().contiguous().view(torch.int32).flatten().split(_PIECE):
            found.update(f"{int((bits * places[: len(bits)]).sum())}\n".encode())
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
