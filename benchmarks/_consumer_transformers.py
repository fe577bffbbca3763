"""transformers as anybody uses it, of any version. Does not import rmcli.

PYTHON benchmarks/_consumer_transformers.py ANSWER.json FOLDER...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline


def ways(folder: str, lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The folder's golden conversations, from their messages, by each way in; neither is told of an activation."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    network = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()
    texts = [tokenizer.apply_chat_template(line["messages"], tokenize=False) for line in lines]
    with torch.no_grad():
        scores = network(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()
    classify = pipeline("text-classification", model=folder, device="cpu", trust_remote_code=False)
    piped = [one["score"] for one in classify(texts, batch_size=4)]
    return {
        "AutoModelForSequenceClassification": _told(lines, scores),
        'pipeline("text-classification")': _told(lines, piped),
    }


def _told(lines: list[dict[str, Any]], scores: list[float]) -> list[dict[str, Any]]:
    return [{"messages": line["messages"], "score": score} for line, score in zip(lines, scores, strict=True)]


def main(answer: str, *folders: str) -> None:
    found = {}
    for folder in folders:
        text = Path(folder, "golden.jsonl").read_text(encoding="utf-8")
        found[Path(folder).name] = ways(folder, [json.loads(line) for line in text.splitlines()])
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    Path(answer).write_text(json.dumps({"versions": versions, "folders": found}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
