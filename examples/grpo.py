"""Two steps of TRL's GRPO with a reward model that rmcli has trained. Runs in an environment with TRL.

    python grpo.py MODEL POLICY PROMPTS.jsonl REWARDS.jsonl

PROMPTS holds lines with `prompt`, messages; REWARDS gets a line with `messages` and `reward` for each completion:
what GRPO took for it.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

STEPS, AT_A_TIME = 2, 4


class Keeping(GRPOTrainer):
    """Keeps each conversation with its reward."""

    kept: list[dict[str, Any]]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
        for prompt, completion, reward in zip(prompts, completions, rewards[:, 0].tolist(), strict=True):
            self.kept.append({"messages": [*prompt, *completion], "reward": reward})
        return rewards


def main(model: str, policy: str, prompts: str, rewards: str) -> None:
    with Path(prompts).open(encoding="utf-8") as lines:
        rows = [{"prompt": json.loads(line)["prompt"]} for line in islice(lines, STEPS * AT_A_TIME)]
    place = Path(rewards).parent / "policy"
    settings = GRPOConfig(
        output_dir=str(place),
        max_steps=STEPS,
        per_device_train_batch_size=AT_A_TIME,
        num_generations=2,
        max_completion_length=16,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    )
    trainer = Keeping(model=policy, reward_funcs=model, args=settings, train_dataset=Dataset.from_list(rows))
    trainer.kept = []
    trainer.train()
    with Path(rewards).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in trainer.kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
