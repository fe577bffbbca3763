"""InternLM2's weights into Llama's: the fused queries, keys and values split, the names mapped, nothing left over."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.backbones.internlm2.config import llama_config
from rmcli.backbones.internlm2.files import find_file, read_json_object
from rmcli.backbones.shards import shard_name
from rmcli.errors import RmcliError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, PreTrainedModel

# A weight file and its index when it is sharded, in the order they are looked for.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_LANGUAGE_HEAD = "output.weight"
_SCORE_HEAD = "v_head.weight"


# --- the weights ---


def load_weights(location: Mapping[str, Any]) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """The float32 classifier filled from the checkpoint, and what `output_loading_info` would report.

    Shards are mapped and read one tensor at a time: memory is the model and one shard at most. `score.weight` is
    uninitialised and among the missing keys when the checkpoint has no `v_head`.
    Raises RmcliError for a tensor that is missing, left over, given twice or of another shape.
    """
    import torch
    from transformers import LlamaForSequenceClassification
    from transformers.initialization import no_init_weights

    name = location["pretrained_model_name_or_path"]
    config = llama_config(read_json_object(location, "config.json"), name)
    config.num_labels, config.dtype = 1, torch.float32
    with no_init_weights():
        network = LlamaForSequenceClassification(config)
    has_head = fill(network, stored_tensors(location), name)
    return network, {"missing_keys": set() if has_head else {"score.weight"}, "mismatched_keys": set()}


def stored_tensors(location: Mapping[str, Any]) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor) of the whole checkpoint, shard after shard, in whatever type it is stored."""
    for path in _weight_files(location):
        yield from _safetensors_of(path) if path.suffix == ".safetensors" else _pickled_tensors_of(path)


def _weight_files(location: Mapping[str, Any]) -> list[Path]:
    first = next((name for name in WEIGHT_FILES if find_file(location, name) is not None), None)
    if first is None:
        raise RmcliError(
            f"{location['pretrained_model_name_or_path']} has no weights", f"looked for {', '.join(WEIGHT_FILES)}"
        )
    names = [first]
    if first.endswith(".index.json"):
        weight_map = read_json_object(location, first).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RmcliError(f"{find_file(location, first)} has no weight_map", "the checkpoint is damaged")
        names = sorted({shard_name(value, first) for value in weight_map.values()})
    return [path for name in names if (path := find_file(location, name, needed=True)) is not None]


def _safetensors_of(path: Path) -> "Iterator[tuple[str, Tensor]]":
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 - it is no dict
                yield key, shard.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise RmcliError(f"{path} cannot be read: {error}", "the file is damaged or not whole") from error


def _pickled_tensors_of(path: Path) -> "Iterator[tuple[str, Tensor]]":
    from pickle import UnpicklingError

    import torch

    try:
        shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RmcliError(f"{path} cannot be read: {first}", "the file is damaged or not whole") from error
    if not isinstance(shard, dict) or not all(isinstance(value, torch.Tensor) for value in shard.values()):
        raise RmcliError(f"{path} holds no tensors by name", "the checkpoint is damaged")
    yield from shard.items()


def fill(network: "PreTrainedModel", tensors: "Iterable[tuple[str, Tensor]]", name: str) -> bool:
    """Copy a checkpoint's tensors into a Llama classifier. True when they held a score head.

    Names may or may not begin with `model.`; the language head is dropped, as a reward model has none. Raises
    RmcliError unless every parameter, the score head apart, is filled once with its own shape.
    """
    import torch

    config: Any = network.config
    places = llama_names(config)
    parameters = dict(network.named_parameters())
    seen: set[str] = set()
    for key, tensor in tensors:
        own = key.removeprefix("model.")
        if own == _LANGUAGE_HEAD:
            continue
        if own not in places:
            raise RmcliError(
                f"the checkpoint of {name} holds {key}, for which an InternLM2 of {config.num_hidden_layers} layers "
                "has no place",
                "a reward model has one linear head without a bias, v_head.weight"
                if own.startswith("v_head.")
                else "config.json and weights must belong together; quantized and adapter checkpoints are not read",
            )
        if own in seen:
            raise RmcliError(f"the checkpoint of {name} holds {key} twice", "the checkpoint is damaged")
        seen.add(own)
        targets = [parameters[target] for target in places[own]]
        shape = (sum(target.shape[0] for target in targets), *targets[0].shape[1:])
        if tensor.shape != shape or not tensor.is_floating_point():
            raise RmcliError(
                f"the checkpoint of {name}: {key} is {tuple(tensor.shape)} of {tensor.dtype}, not {shape} of floats",
                "config.json and weights must belong together",
            )
        parts = split_qkv(tensor, config) if len(targets) == 3 else (tensor,)
        with torch.no_grad():
            for target, part in zip(targets, parts, strict=True):
                target.copy_(part)
    missing = [own for own in places if own not in seen and own != _SCORE_HEAD]
    if missing:
        raise RmcliError(
            f"the checkpoint of {name} lacks {len(missing)} tensor{'s' * (len(missing) > 1)}, first {missing[0]}",
            "the checkpoint must hold every weight its config.json asks for",
        )
    return _SCORE_HEAD in seen


def llama_names(config: "LlamaConfig") -> dict[str, tuple[str, ...]]:
    """InternLM2's tensor names, without `model.`, and the Llama parameters each one fills."""
    names: dict[str, tuple[str, ...]] = {"tok_embeddings.weight": ("model.embed_tokens.weight",)}
    kinds = ("weight", "bias") if config.attention_bias else ("weight",)
    for number in range(config.num_hidden_layers):
        here, there = f"layers.{number}", f"model.layers.{number}"
        for kind in kinds:
            queries_keys_values = tuple(f"{there}.self_attn.{part}_proj.{kind}" for part in "qkv")
            names[f"{here}.attention.wqkv.{kind}"] = queries_keys_values
            names[f"{here}.attention.wo.{kind}"] = (f"{there}.self_attn.o_proj.{kind}",)
        for own, llama in (
            ("feed_forward.w1", "mlp.gate_proj"),
            ("feed_forward.w3", "mlp.up_proj"),
            ("feed_forward.w2", "mlp.down_proj"),
            ("attention_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            names[f"{here}.{own}.weight"] = (f"{there}.{llama}.weight",)
    names["norm.weight"] = ("model.norm.weight",)
    names[_SCORE_HEAD] = ("score.weight",)
    return names


def split_qkv(wqkv: "Tensor", config: "LlamaConfig") -> "tuple[Tensor, Tensor, Tensor]":
    """Queries, keys and values of a fused `wqkv` (weight or bias).

    Its rows read as (key/value heads, queries per key/value head + 2, head_dim): each group holds its queries, then
    its key, then its value. Llama's heads stand in the same order, group by group.
    """
    groups = config.num_key_value_heads
    assert groups is not None  # llama_config sets it
    per_group = config.num_attention_heads // groups + 2
    grouped = wqkv.reshape(groups, per_group, -1, *wqkv.shape[1:])
    return grouped[:, :-2].flatten(0, 2), grouped[:, -2].flatten(0, 1), grouped[:, -1].flatten(0, 1)
