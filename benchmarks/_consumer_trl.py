"""TRL with a folder as the reward of GRPO and RLOO, and as what RewardTrainer starts from. Does not import rmcli.

TRL_PYTHON benchmarks/_consumer_trl.py ANSWER.json FOLDER...

Each trainer takes two steps. The policy is a small random model with the folder's own tokenizer: what it writes is no
language.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

STEPS = 2
QUESTIONS = ("What is 2 + 2?", "Sort these: 3 1 2", "Name a colour.", "Say hello.")
Told = list[dict[str, Any]]


class Keeping:
    """Keeps what the trainer takes for the reward of each completion."""

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)  # type: ignore[misc]
        for prompt, completion, reward in zip(prompts, completions, rewards[:, 0].tolist(), strict=True):
            self.told.append({"messages": [*prompt, *completion], "score": reward})  # type: ignore[attr-defined]
        return rewards


class KeepingGRPO(Keeping, GRPOTrainer):
    pass


class KeepingRLOO(Keeping, RLOOTrainer):
    pass


def policy(folder: str, place: str) -> tuple[str, Any]:
    """The folder of a language model, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(f"{place}/policy")
    return f"{place}/policy", tokenizer


def rewarded(folder: str, place: str, trainer_class: Any, config_class: Any) -> Told:
    """Two steps with `reward_funcs=folder`: conversations and what the trainer took for their rewards."""
    model, tokenizer = policy(folder, place)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS])
    settings = config_class(
        output_dir=place,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        # No token of the template's own in an answer, and none at its end: what is scored is text.
        generation_kwargs={"suppress_tokens": sorted(tokenizer.added_tokens_decoder)},
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = trainer_class(
        model=model, reward_funcs=folder, args=settings, train_dataset=rows, processing_class=tokenizer
    )
    trainer.told = []
    trainer.train()
    assert trainer.state.global_step == STEPS
    return trainer.told


def trained_on(folder: str, place: str, lines: Told) -> Told:
    """RewardTrainer from the folder: the scores of its first forward, by the ids that it made."""
    whole = [line["messages"] for line in lines]
    pairs = [{"chosen": one, "rejected": other} for one, other in zip(whole[::2], whole[1::2], strict=False)]
    settings = RewardConfig(
        output_dir=place,
        max_steps=STEPS,
        per_device_train_batch_size=len(pairs),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = RewardTrainer(model=folder, args=settings, train_dataset=Dataset.from_list(pairs))
    told: Told = []

    def keep(_: Any, arguments: Any, inputs: dict[str, Any], outputs: Any) -> None:
        if not told:
            rows = zip(inputs["input_ids"], inputs["attention_mask"], outputs.logits[:, 0].tolist(), strict=True)
            told.extend({"ids": ids[mask.bool()].tolist(), "score": score} for ids, mask, score in rows)

    trainer.model.register_forward_hook(keep, with_kwargs=True)
    trainer.train()
    assert trainer.state.global_step == STEPS
    return told


def main(answer: str, *folders: str) -> None:
    found = {}
    for folder in folders:
        text = Path(folder, "golden.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        with tempfile.TemporaryDirectory() as place:
            found[Path(folder).name] = {
                "GRPOTrainer": rewarded(folder, place, KeepingGRPO, GRPOConfig),
                "RLOOTrainer": rewarded(folder, place, KeepingRLOO, RLOOConfig),
                "RewardTrainer": trained_on(folder, place, lines),
            }
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    Path(answer).write_text(json.dumps({"versions": versions, "folders": found}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
