"""metrics.jsonl: one JSON object a line, for each log line and each evaluation of a run."""

import json
from collections.abc import Mapping
from typing import Any, TextIO

METRICS_FILE = "metrics.jsonl"


def add_metrics(file: TextIO, values: Mapping[str, Any]) -> None:
    """One line, on disk as far as the process can tell."""
    file.write(json.dumps(values) + "\n")
    file.flush()
