"""What a figure is, plain values that --json prints, and how much of a list it holds."""

from typing import Any

NUM_EXTREMES = 10  # rows listed per kind of extreme
MAX_LISTED = 100  # contradictions, duplicates and near-duplicates listed; all are counted
EXCERPT_TOKENS = 40  # of the prompt's end and of the reply's beginning
Figures = dict[str, Any]  # plain values: what --json prints
