"""A public reward model, trained elsewhere without a reward token, and its own scores."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from rmcli.config.presets import presets_folder

# As Llama-3's: BOS, headers, an end of turn after every message.
SKYWORK_LIKE = (
    "{{ '<|im_start|>' }}{% for m in messages %}"
    "{{ '[' + m['role'] + ']\\n\\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\\n\\n' }}{% endif %}"
)
TALKS = [
    [{"role": "user", "content": f"Sort: {n} 2 1"}, {"role": "assistant", "content": f"1 2 {n}\n"}] for n in range(9)
]
TALKS.append([{"role": "system", "content": "Be brief."}, *TALKS[0], {"role": "user", "content": "No."}, TALKS[1][1]])


def make_foreign(folder: Path, template: str = SKYWORK_LIKE, **config: object) -> Path:
    """A Llama classifier with one output and a tokenizer, as on the Hub: it names no reward token."""
    tokenizer = AutoTokenizer.from_pretrained(presets_folder() / "tiny")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    whole = LlamaConfig(
        **sizes, vocab_size=384, initializer_range=0.2, num_labels=1, pad_token_id=tokenizer.pad_token_id, **config
    )
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(whole, dtype=torch.float32)
    torch.nn.init.normal_(network.score.weight, std=0.3)
    network.save_pretrained(folder)
    return folder


def own_scores(folder: Path) -> list[float]:
    """By transformers alone, as model cards say it: apply_chat_template, forward, the logit."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        inputs = [tokenizer.apply_chat_template(talk, return_tensors="pt") for talk in TALKS]
        return [network(**one).logits[0][0].item() for one in inputs]
