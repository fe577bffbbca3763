"""The file that figures are kept in, and what tells it from other JSON."""

EVALUATION_FILE, KIND = "metrics.json", "rmcli evaluation"
