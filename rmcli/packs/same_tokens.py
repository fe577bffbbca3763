"""Whether the ids of a prepared set mean to a model what they meant when the set was prepared."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rmcli.errors import RmcliError
from rmcli.tokens.tokenizer import RewardTokenizer


def check_same_tokens(
    manifest: Mapping[str, Any],
    reward: RewardTokenizer,
    folder: Path,
    templates: Collection[str] = (),
    ids: str | None = None,
) -> None:
    """Refuse data whose ids mean something else to this model. Raises RmcliError with both sides.

    `templates`: chat templates that write the same as the model's own, such as the one that its own was made of.
    `ids`: the model's `ids_sha256`, which what was prepared for its base shares.
    """
    same = {hashlib.sha256(template.encode()).hexdigest() for template in templates}
    again = f"prepare the data for this model: rmcli prepare ... -o DIR, or train preset {manifest['preset']} on it"
    alike = ids is not None and manifest.get("ids_sha256") == ids  # sets from before have none
    for name, value in reward.fingerprint().items():
        if manifest[name] != value and not alike and not (name == "chat_template_sha256" and manifest[name] in same):
            what = name.removesuffix("_sha256").replace("_", " ")
            raise RmcliError(
                f"{folder} was prepared for preset {manifest['preset']} with another {what} than that of "
                f"{reward.tokenizer.name_or_path} ({manifest[name][:8]}, not {value[:8]})",
                again,
            )
    there = (manifest["reward_token"], manifest["reward_token_id"], manifest["reward_mode"])
    here = (reward.reward_token, reward.reward_token_id, reward.mode)
    if there != here:
        raise RmcliError(
            f"{folder} was prepared with reward token {there[0]} ({there[1]}, {there[2]}), "
            f"not {here[0]} ({here[1]}, {here[2]})",
            again,
        )
