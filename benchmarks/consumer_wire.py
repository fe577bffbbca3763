"""What clients of reward servers send, and what they take of the answer for a score, in our own words.

Each gives the score of one conversation whose reply the policy has written. Sources: `consumer_reads.READS`.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

Messages = list[dict[str, Any]]
Post = Callable[[str, Any], Any]  # a path and JSON to JSON


def posting(port: int) -> Post:
    """To the server on this machine; raises urllib's HTTPError for any answer but 200."""

    def post(path: str, body: Any) -> Any:
        content = {"Content-Type": "application/json"}
        request = Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), content)
        with urlopen(request, timeout=60) as reply:
            return json.load(reply)

    return post


def text_without_bos(tokenizer: Any, messages: Messages) -> str:
    """The rendered text; a BOS that it begins with is cut off, as whoever tokenizes it is to add it again."""
    return tokenizer.apply_chat_template(messages, tokenize=False).removeprefix(tokenizer.bos_token or "")


def prompt_of_the_policy(tokenizer: Any, messages: Messages) -> str:
    """All before the reply, rendered, up to where it begins."""
    return tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)


def text_of_the_policy(tokenizer: Any, messages: Messages) -> str:
    """The rendered prompt, the reply as the policy ends it (with EOS), and nothing after it."""
    return prompt_of_the_policy(tokenizer, messages) + messages[-1]["content"] + tokenizer.eos_token


def verl(post: Post, tokenizer: Any, messages: Messages) -> float:
    asked = {"model": "reward", "input": text_without_bos(tokenizer, messages), "use_activation": False}
    return post("/classify", asked)["data"][-1]["probs"][-1]


def openrlhf(post: Post, tokenizer: Any, messages: Messages) -> float:
    return post("/get_reward", {"query": [text_of_the_policy(tokenizer, messages)]})["rewards"][0]


def llamafactory(post: Post, tokenizer: Any, messages: Messages) -> float:
    asked = {"model": "model", "messages": [text_of_the_policy(tokenizer, messages)]}
    return post("/v1/score/evaluation", asked)["scores"][0]


def slime(post: Post, tokenizer: Any, messages: Messages) -> float:
    reply = messages[-1]["content"] + tokenizer.eos_token
    prompt = prompt_of_the_policy(tokenizer, messages)
    return post("/slime", {"prompt": prompt, "response": reply, "label": None})
