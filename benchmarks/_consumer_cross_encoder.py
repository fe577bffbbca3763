"""sentence-transformers' CrossEncoder on a folder. Does not import rmcli.

PYTHON benchmarks/_consumer_cross_encoder.py ANSWER.json FOLDER...
"""

import json
import sys
from pathlib import Path
from typing import Any

import sentence_transformers
import torch
import transformers
from sentence_transformers import CrossEncoder


def scores(folder: str, lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of the conversations as messages: it applies the folder's chat template itself."""
    encoder = CrossEncoder(folder, device="cpu", trust_remote_code=False)
    found = encoder.predict([line["messages"] for line in lines], show_progress_bar=False).tolist()
    told = [{"messages": line["messages"], "score": score} for line, score in zip(lines, found, strict=True)]
    return {"CrossEncoder": told}


def main(answer: str, *folders: str) -> None:
    found = {}
    for folder in folders:
        text = Path(folder, "golden.jsonl").read_text(encoding="utf-8")
        found[Path(folder).name] = scores(folder, [json.loads(line) for line in text.splitlines()])
    versions = {"sentence-transformers": sentence_transformers.__version__}
    versions |= {"transformers": transformers.__version__, "torch": torch.__version__}
    Path(answer).write_text(json.dumps({"versions": versions, "folders": found}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
