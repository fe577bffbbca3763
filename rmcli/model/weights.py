"""The weights of a model's files in a network, or why not: nothing missing, misshapen, left over or not finite."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rmcli import output
from rmcli.backbones.internlm2.auto import AutoSequenceClassifier
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.presets import pretrained_arguments
from rmcli.config.sections import ModelSection
from rmcli.config.trained import names_a_head
from rmcli.errors import RmcliError

HEAD = "score.weight"
# What a checkpoint may hold and a reward model does without: the language head, and constants that old releases of
# transformers stored.
_NOT_NEEDED = re.compile(r"(^|\.)(lm_head|embed_out)\.|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")

# What others call a head, or have beside ours; it stands above the layers.
_OTHER_HEAD = re.compile(r"(model\.)?\w*(head|score|reward|value|classif|regress)\w*(\.\w+)*\.(weight|bias)")


def load_stored(model: ModelSection, config: PreTrainedConfig, for_scoring: bool) -> tuple[PreTrainedModel, bool]:
    """The float32 network with the weights of its files, and whether its head is new, still to be set.

    `config` is the model's, with attention unnamed; a .gguf file has its own. Raises RmcliError unless the files fill
    everything (the head apart, where it is still to be trained) with finite numbers of the right shape, and, for
    scoring, hold nothing else: what is left over then would be a part of the model that does not count. For training
    it is said.
    """
    name = model.pretrained_model_name_or_path
    assert name is not None
    stated = config.architectures or []  # loading writes the network's own there
    arguments: dict[str, Any] = dict(pretrained_arguments(name, model.revision))
    # Shapes that differ are reported, not raised: transformers' own error points to a report that is not printed.
    arguments |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if "gguf_file" in arguments:
        arguments |= {"num_labels": 1, "quantization_config": _dequantize(arguments["gguf_file"])}
    else:
        config.num_labels = config.get_text_config().num_labels = 1
        arguments["config"] = config
    network, report = from_pretrained(AutoSequenceClassifier, "weights", name, arguments)
    _refuse_misshapen(report["mismatched_keys"], name)
    missing = set(report["missing_keys"])
    _refuse_other_head(report.get("unexpected_keys", ()), HEAD in missing, name)
    if HEAD in missing and not for_scoring and names_a_head({"architectures": stated}):
        raise RmcliError(
            f"config.json of {name} says {stated[0]}, but its weights have no {HEAD}: the head is lost",
            "give a folder with its head; for a new head, give the model that it was trained from",
        )
    _refuse_missing(missing if for_scoring else missing - {HEAD}, name)
    _settle_left_over(report.get("unexpected_keys", ()), name, for_scoring)
    _refuse_not_finite(network, name, missing)
    return network, HEAD in missing


def _refuse_misshapen(mismatched: Iterable[tuple[str, Any, Any]], name: str) -> None:
    for key, stored, expected in sorted(mismatched):
        stored, expected = tuple(stored), tuple(expected)
        shapes = f"{key} is {stored} in the weights of {name}, and {expected} by its config.json"
        if key == HEAD and len(stored) == 2 and stored[0] != 1:
            raise RmcliError(
                f"{shapes}: a classifier with {stored[0]} outputs", "a reward model has one output, the score"
            )
        raise RmcliError(shapes, "weights and config.json must belong together")


def _refuse_other_head(unexpected: Iterable[str], has_none: bool, name: str) -> None:
    """A head that is not ours would be lost in silence, and so would a constant that it adds to each score."""
    found = sorted(key for key in unexpected if _OTHER_HEAD.fullmatch(key) and not _NOT_NEEDED.search(key))
    if found and has_none:
        raise RmcliError(
            f"the head of {name} is called {', '.join(found)}, and would be lost: it must be {HEAD} alone",
            f"rename it to {HEAD} in its weight file; of one with a bias or several layers no score can be read",
        )
    if found:
        raise RmcliError(
            f"the head of {name} has {', '.join(found)} beside {HEAD}: its scores would be others without",
            f"a reward model has one linear head without a bias, {HEAD}",
        )


def _refuse_missing(missing: set[str], name: str) -> None:
    if HEAD in missing:
        raise RmcliError(
            f"the weights of {name} have no {HEAD}: without its head no score is learned",
            "only a trained reward model can score: rmcli train makes one",
        )
    if missing:
        first = min(missing)
        raise RmcliError(
            f"the weights of {name} do not fill the model: {len(missing)} missing, first {first}",
            "the checkpoint must hold every weight its config.json asks for",
        )


def _settle_left_over(unexpected: Iterable[str], name: str, for_scoring: bool) -> None:
    left_over = sorted(key for key in unexpected if not _NOT_NEEDED.search(key))
    if not left_over:
        return
    said = f"{len(left_over)} weights of {name} have no place in the model of its config.json, first {left_over[0]}"
    if for_scoring:
        raise RmcliError(said, "is its config.json another model's, with fewer layers?")
    output.warn(f"{said}: not used")


def _refuse_not_finite(network: nn.Module, name: str, missing: set[str]) -> None:
    for key, weight in network.named_parameters():
        if key in missing or not weight.is_floating_point():
            continue
        low, high = weight.detach().aminmax()  # NaN goes through both
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise RmcliError(
                f"{key} in the weights of {name} is not finite ({low:g} to {high:g})", "the checkpoint is damaged"
            )


def _dequantize(gguf_file: str) -> Any:
    """Plain weights instead of a quantized model, which could not be trained or saved."""
    from transformers.utils.quantization_config import GgufConfig

    return GgufConfig(gguf_file=gguf_file, dequantize=True)
