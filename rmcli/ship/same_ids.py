"""Whether two tokenizers write the same ids of every conversation, though one is a base's and one has shipped.

A shipped tokenizer adds nothing of its own (`model.shipped_tokenizer`), and its chat template ends at the reward
position (`ship.template`): rmcli never lets a tokenizer add anything, and puts the reward token there itself.
"""

import hashlib
import json

from rmcli.model.shipped_tokenizer import without_special_tokens
from rmcli.ship.template import trained_templates
from rmcli.tokens.tokenizer import RewardTokenizer


def ids_sha256(reward: RewardTokenizer) -> str:
    """sha256 of what the ids of a conversation depend on, of a base's tokenizer and of one that shipped alike."""
    rules = reward.rules()
    if "post_processor" in rules:
        rules["post_processor"] = without_special_tokens(rules["post_processor"])
    whole = [rules, _without_ending(str(reward.tokenizer.chat_template), reward)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode("ascii")).hexdigest()


def _without_ending(template: str, reward: RewardTokenizer) -> str:
    """The template before it was made to end at the reward position. Jinja drops one newline at the very end."""
    _, *made_of = trained_templates(template, reward)
    return (made_of[0] if made_of else template).removesuffix("\n")
