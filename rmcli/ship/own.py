"""Score a folder's golden.jsonl in a process of its own with rmcli's loaders: for what transformers lacks."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from rmcli.backbones import architectures
from rmcli.backbones.internlm2.auto import MODEL_TYPE, AutoConfig, AutoSequenceClassifier, AutoTokenizer
from rmcli.config.files import read_json
from rmcli.ship import plain


def _load_model(folder: str, dtype: Any, attn_implementation: str, **arguments: Any) -> Any:
    """As transformers' own loader gives it, of a classifier that it has not, or of InternLM2's layout."""
    if read_json(Path(folder, "config.json")).get("model_type") == MODEL_TYPE:
        network, report = AutoSequenceClassifier.from_pretrained(pretrained_model_name_or_path=folder)
        network.set_attn_implementation(attn_implementation)
        return network.to(dtype), report
    architectures.ensure_classifier(AutoConfig.from_pretrained(pretrained_model_name_or_path=folder))
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, attn_implementation=attn_implementation, **arguments
    )


def _load_tokenizer(folder: str, **_: Any) -> Any:
    return AutoTokenizer.from_pretrained(pretrained_model_name_or_path=folder)


if __name__ == "__main__":
    plain.serve(load_model=_load_model, load_tokenizer=_load_tokenizer)
