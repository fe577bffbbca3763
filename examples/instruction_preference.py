"""A map function of your own, for rows with `instruction`, `input`, `chosen` and `rejected`.

rmcli prepare instruction_preference.jsonl.gz --map-fn examples/instruction_preference.py:to_pair
"""

from collections.abc import Mapping


def to_pair(row: Mapping[str, str]) -> dict:
    """The canonical form: `prompt`, `chosen` and `rejected` as message lists or strings."""
    question = row["instruction"] if not row["input"] else f"{row['instruction']}\n\n{row['input']}"
    return {"prompt": question, "chosen": row["chosen"], "rejected": row["rejected"]}
