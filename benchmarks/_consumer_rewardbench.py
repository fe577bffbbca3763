"""RewardBench's own pipeline on a folder. Does not import rmcli.

PYTHON benchmarks/_consumer_rewardbench.py ANSWER.json FOLDER...

The package pins transformers 4.51 and imports its model zoo with it, so the file of the pipeline is loaded by itself.
It sends its inputs to "cuda"; here they stay on the CPU. All else is as `rewardbench` sets it: padded on the left,
texts from the tokenizer's chat template, its own guard against two BOS.
"""

import importlib.util
import json
import sys
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BatchEncoding

FILE = "rewardbench/models/pipeline.py"


def pipeline_class() -> Any:
    path = distribution("rewardbench").locate_file(FILE)
    spec = importlib.util.spec_from_file_location("rewardbench_pipeline", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RewardBenchPipeline


def scores(folder: str, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.padding_side = "left"
    network = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    score = pipeline_class()("text-classification", model=network, tokenizer=tokenizer)
    texts = [tokenizer.apply_chat_template(line["messages"], tokenize=False) for line in lines]
    found = score(texts, batch_size=len(texts), truncation=False, padding=True, max_length=512)[:, 0].tolist()
    return [{"messages": line["messages"], "score": one} for line, one in zip(lines, found, strict=True)]


def main(answer: str, *folders: str) -> None:
    BatchEncoding.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    found = {}
    for folder in folders:
        text = Path(folder, "golden.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        found[Path(folder).name] = {"RewardBenchPipeline": scores(folder, lines)}
    versions = {"rewardbench": version("rewardbench"), "transformers": transformers.__version__}
    versions["torch"] = torch.__version__
    Path(answer).write_text(json.dumps({"versions": versions, "folders": found}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
