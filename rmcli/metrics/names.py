"""The files that figures are kept in: their names, what tells one from other JSON, and how it is written."""

import json
from collections.abc import Mapping
from typing import Any

EVALUATION_FILE, KIND = "metrics.json", "rmcli evaluation"
MARGINS_FILE = "eval_margins.jsonl"  # of single comparisons, beside it
WORST = 20  # pairs of each set that are kept as text


def as_json(told: Mapping[str, Any]) -> str:
    """The text of an evaluation's file. Raises ValueError for a number that JSON lacks."""
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
