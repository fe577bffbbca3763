"""Score a folder's golden.jsonl in a process of its own with rmcli's loaders: for what transformers lacks."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rmcli.backbones import architectures
from rmcli.backbones.adapter_files import base_of, is_adapter_folder
from rmcli.backbones.internlm2.auto import MODEL_TYPE, AutoConfig, AutoSequenceClassifier, AutoTokenizer
from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.files import read_json
from rmcli.model import adapter, adapter_folder
from rmcli.model.network import backbone, score_head
from rmcli.ship import plain


def load_model(folder: str, dtype: Any, attn_implementation: str, trust_remote_code: bool, **arguments: Any) -> Any:
    """As transformers' own loader gives it, of a classifier that it has not, or of InternLM2's layout."""
    assert not trust_remote_code
    if is_adapter_folder(folder):
        base = str(base_of(folder)["pretrained_model_name_or_path"])
        network, report = load_model(base, torch.float32, attn_implementation, trust_remote_code, **arguments)
        adapter_folder.put(Path(folder), network)
        return adapter.merge(network).to(dtype), {}
    if read_json(Path(folder, "config.json")).get("model_type") == MODEL_TYPE:
        network, report = from_pretrained(AutoSequenceClassifier, "weights", folder, _place(folder))
        network.set_attn_implementation(attn_implementation)
        return network.to(dtype), report
    architectures.ensure_classifier(from_pretrained(AutoConfig, "config", folder, _place(folder)))
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, trust_remote_code=False, **arguments
    )


def load_tokenizer(folder: str, **_: Any) -> Any:
    return from_pretrained(AutoTokenizer, "tokenizer", folder, _place(folder))


def _place(folder: str) -> dict[str, str]:
    return {"pretrained_model_name_or_path": folder}


def score(network: Any, inputs: dict[str, Any]) -> Tensor:
    """(B,) scores at the last tokens that are no padding; not every backbone runs in transformers' classifier."""
    hidden_BLD = backbone(network)(**inputs, use_cache=False)[0]
    mask_BL = inputs["attention_mask"]
    last_B = (mask_BL * torch.arange(mask_BL.shape[1], device=mask_BL.device)).argmax(1)
    return score_head(network)(hidden_BLD[torch.arange(len(last_B)), last_B])[:, 0]


if __name__ == "__main__":
    plain.serve(load_model=load_model, load_tokenizer=load_tokenizer, score=score)
