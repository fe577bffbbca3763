"""`rmcli train`: a job decided and checked (`job`), then run (`loop`)."""

from rmcli.train.job import build_job, describe, find_data
from rmcli.train.loop import run

__all__ = ["build_job", "describe", "find_data", "run"]
