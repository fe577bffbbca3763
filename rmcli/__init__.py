"""rmcli: train, score and inspect reward models."""

__version__ = "0.1.0"
