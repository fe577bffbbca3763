"""What consumers that do not run here rely on in a folder, each with its source, and done to a folder as they do it.

Most come down to the ids that they score: `ids` makes them in the consumer's way, in our own words. Where those are
the golden ids the score is rmcli's, as what follows is a forward and the head, read at the last token that is no
padding. Others are properties of the files. What clients send to `rmcli serve` is in `consumer_wire.py`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from consumer_wire import Messages, Post, llamafactory, openrlhf, slime, text_of_the_policy, text_without_bos, verl

READ_ON = "2026-11-26"


def whole_text(tokenizer: Any, messages: Messages) -> list[int]:
    """The rendered text, tokenized as a tokenizer does by itself: special tokens added, if it adds any."""
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"]


def bos_added_again(tokenizer: Any, messages: Messages) -> list[int]:
    """The rendered text without BOS, tokenized as a tokenizer does by itself."""
    return tokenizer(text_without_bos(tokenizer, messages))["input_ids"]


def what_the_policy_wrote(tokenizer: Any, messages: Messages) -> list[int]:
    """Its text, to which nothing is added."""
    return tokenizer(text_of_the_policy(tokenizer, messages), add_special_tokens=False)["input_ids"]


def message_by_message(tokenizer: Any, messages: Messages) -> list[int]:
    """What each message adds to the rendered text, tokenized by itself; BOS before it all and EOS after it."""
    ids: list[int] = []
    before = ""
    for number in range(1, len(messages) + 1):
        text = tokenizer.apply_chat_template(messages[:number], tokenize=False)
        piece = text[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))) :]
        bos, eos = tokenizer.bos_token, tokenizer.eos_token
        if number == 1 and bos and not piece.startswith(bos):
            piece = bos + piece
        if number == len(messages) and eos and not piece.rstrip("\n").endswith(eos):
            piece += eos
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        before = text
    return ids


def plain_head(folder: Path) -> bool:
    """One linear layer named `score`, without a bias; no other head."""
    names = _weights(folder)
    return names.get("score.weight", [0])[0] == 1 and not any("score.bias" in n or "lm_head" in n for n in names)


def no_activation(folder: Path) -> bool:
    """One label, regression, and a classifier's architecture."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (architecture,) = config["architectures"]
    is_plain = config["problem_type"] == "regression" and len(config["id2label"]) == 1
    return is_plain and architecture.endswith("ForSequenceClassification")


def identity_is_named(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}


def more_than_one_label(folder: Path) -> bool:
    return len(json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]) > 1


def value_head_of_trl(folder: Path) -> bool:
    return any("v_head" in name for name in _weights(folder)) or (folder / "value_head.safetensors").exists()


def cuts_left(folder: Path) -> bool:
    values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return values["truncation_side"] == "left" and values["pad_token"] is not None


def _weights(folder: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


@dataclass(frozen=True)
class Read:
    """One thing that a consumer relies on.

    `check` makes its ids, asks a server as it does, or looks at the folder. It comes out right in the modes of
    `right`, and wrong in all others, which the test holds as well. `source` is REPOSITORY@COMMIT FILE.
    """

    consumer: str
    relies_on: str
    source: str
    check: Callable[..., Any]
    right: tuple[str, ...] = ("reserved", "natural", "last")
    set: str = ""

    @property
    def makes_ids(self) -> bool:
        return self.check in _MAKE_IDS

    @property
    def asks_a_server(self) -> bool:
        return self.check in _ASK


_MAKE_IDS = (whole_text, bos_added_again, what_the_policy_wrote, message_by_message)
_ASK = (verl, openrlhf, llamafactory, slime)
_VLLM, _SGLANG = "vllm-project/vllm", "sgl-project/sglang"
_OPENRLHF = "OpenRLHF/OpenRLHF@58ec6ffd957e openrlhf/cli/serve_rm.py"
_VERL = "verl-project/verl@fed1e3d1b487 verl/experimental/reward_loop/reward_loop.py"
_ADAPTERS = f"{_VLLM}@00620f91ea18 vllm/model_executor/models/adapters.py"
_ACTIVATIONS = f"{_VLLM}@63e2539cd291 vllm/model_executor/layers/pooler/activations.py"
_PROTOCOL = f"{_VLLM}@65772ef15427 vllm/entrypoints/pooling/base/protocol.py"
_NEMO = "NVIDIA-NeMo/RL@37b1837ca2b5 nemo_rl/data/llm_message_utils.py"
_LLAMAFACTORY = "hiyouga/LLaMA-Factory"
_NATURAL = ("natural",)

READS = (
    Read("vLLM", "a head `score` without a bias, read at the last token", _ADAPTERS, plain_head),
    Read("vLLM `/classify`", "`problem_type` says that no activation is applied", _ACTIVATIONS, no_activation),
    Read("vLLM `/classify`", "`input` is the rendered text; special tokens are added", _PROTOCOL, whole_text),
    Read("vLLM `/score`", "config.json names the activation, else a sigmoid", _ACTIVATIONS, identity_is_named),
    Read(
        "SGLang `/v1/embeddings`, `/classify`",
        "a head `score` without a bias, read at the last token",
        f"{_SGLANG}@71bcc5fb94ba python/sglang/srt/models/llama_reward.py",
        plain_head,
    ),
    Read(
        "SGLang `/v1/embeddings`, `/classify`",
        "the rendered text, its last token pooled",
        f"{_SGLANG}@01c5f05ac307 python/sglang/srt/layers/pooler.py",
        whole_text,
    ),
    Read(
        "SGLang `/v1/classify`",
        "more than one label: it gives the softmax over them, which of one score is 1",
        f"{_SGLANG}@984762a00040 python/sglang/srt/entrypoints/openai/serving_classify.py",
        more_than_one_label,
        (),
        "ask `/v1/embeddings` (as verl does) or `/classify`",
    ),
    Read(
        "verl, reward loop",
        "the rendered text without the BOS that the tokenizer declares, which is to be added again",
        _VERL,
        bos_added_again,
    ),
    Read("verl, reward loop", "`/classify` answers `data[-1].probs[-1]`; a 5xx is tried 16 times", _VERL, verl),
    Read(
        "OpenRLHF `serve_rm`",
        "a head of the name it is told",
        _OPENRLHF,
        plain_head,
        set="`--value_head_prefix score` (the default of this version, not of older ones)",
    ),
    Read("OpenRLHF `serve_rm`", "a tokenizer that pads, and cuts on the left", _OPENRLHF, cuts_left),
    Read(
        "OpenRLHF `serve_rm`",
        "the score stands at the last token of the policy's own text",
        _OPENRLHF,
        what_the_policy_wrote,
        _NATURAL,
        'train with `model.reward_token = "natural"`, or `--remote_rm_url` to a server that renders',
    ),
    Read(
        "OpenRLHF, its client",
        "`/get_reward` answers `rewards`",
        "OpenRLHF/OpenRLHF@07c34b303e86 openrlhf/utils/remote_rm_utils.py",
        openrlhf,
        set="`--remote_rm_url http://HOST:PORT/get_reward`",
    ),
    Read(
        "TRL PPO (no part of 1.16)",
        "the score stands at the last token of the policy's own ids",
        "huggingface/trl@d6196b61d8c2 trl/experimental/ppo/ppo_trainer.py",
        what_the_policy_wrote,
        _NATURAL,
        'train with `model.reward_token = "natural"`; `stop_token="eos"`',
    ),
    Read(
        "NeMo-RL, reward model environment",
        "a conversation is tokenized message by message, and ends with EOS",
        _NEMO,
        message_by_message,
        ("natural", "last"),
        'train with `model.reward_token = "natural"`',
    ),
    Read(
        "LLaMA-Factory PPO, `reward_model_type: full`",
        "TRL's `v_head` in the folder, else one drawn at random",
        f"{_LLAMAFACTORY}@0366ce0d0216 src/llamafactory/model/model_utils/valuehead.py",
        value_head_of_trl,
        (),
        "`reward_model_type: api`",
    ),
    Read(
        "LLaMA-Factory PPO, `reward_model_type: api`",
        "the policy's texts are posted as `messages`, `scores` are answered",
        f"{_LLAMAFACTORY}@dbced72e9b1f src/llamafactory/train/ppo/ppo_utils.py",
        llamafactory,
        set="`reward_model: http://HOST:PORT/v1/score/evaluation`",
    ),
    Read(
        "slime, `--rm-type remote_rm`",
        "`prompt`, `response` and `label` are posted, a number is answered",
        "THUDM/slime@0b420f1ef416 slime/rollout/rm_hub/__init__.py",
        slime,
        set="`--rm-url http://HOST:PORT/slime`",
    ),
)


def outcome(read: Read, folder: Path, score: Callable[[list[int]], float], post: Post) -> bool | float:
    """What the check says: held or not, or by how much the scores are off.

    `score` gives the score of ids, `post` asks a server of the folder.
    """
    if not (read.makes_ids or read.asks_a_server):
        return bool(read.check(folder))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    lines = [json.loads(one) for one in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]
    if read.asks_a_server:
        return max(abs(read.check(post, tokenizer, line["messages"]) - line["score"]) for line in lines)
    return max(abs(score(read.check(tokenizer, line["messages"])) - line["score"]) for line in lines)
