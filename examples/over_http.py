"""Ask a server for scores in the shapes of three other tools.

    python over_http.py ADDRESS CONVERSATIONS.jsonl OUT

CONVERSATIONS holds lines with `messages`, and with `text`, the same rendered by the chat template: golden.jsonl
of a model folder. OUT gets a file for each shape, with a line with `score` for each conversation.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen


def ask(address: str, path: str, body: Any = None) -> Any:
    """Raises HTTPError for any status but 200: what has no score is none."""
    content = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address + path, content, {"Content-Type": "application/json"}), timeout=300) as reply:
        return json.load(reply)


def main(address: str, conversations: str, out: str) -> None:
    ask(address, "/ready")  # 503 where it does not give the scores that the folder had when it was exported
    lines = [json.loads(line) for line in Path(conversations).read_text(encoding="utf-8").splitlines()]
    talks, texts = [line["messages"] for line in lines], [line["text"] for line in lines]
    scores = {
        "openrlhf": ask(address, "/get_reward", {"query": texts})["rewards"],
        "vllm": [ask(address, "/classify", {"messages": talk})["data"][0]["probs"][0] for talk in talks],
        "llamafactory": ask(address, "/v1/score/evaluation", {"model": "reward", "messages": texts})["scores"],
    }
    for name, values in scores.items():
        rows = "".join(json.dumps({"score": value}) + "\n" for value in values)
        (Path(out) / f"{name}.jsonl").write_text(rows, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
