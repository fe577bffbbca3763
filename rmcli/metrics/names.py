"""The file that figures are kept in, and what tells it from other JSON."""

EVALUATION_FILE, KIND = "metrics.json", "rmcli evaluation"
WORST = 20  # pairs of each set that are kept as text
