"""What each tracker is started with: where it writes, under which name it knows the run, and that it never waits.

None asks on a terminal, and what needs a network gives up after seconds.
"""

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rmcli.errors import RmcliError

PROJECT = "rmcli"
SECONDS = 30  # that wandb may take to begin, and to send the rest


class _Log(logging.LoggerAdapter):
    warning_once = logging.LoggerAdapter.warning


def maker(name: str, run_folder: Path, ids: Mapping[str, Any], step: int) -> Callable[[], Any]:
    """What makes the tracker of this name, by accelerate's class. `step` is the last one that the run keeps."""

    def make() -> Any:
        from accelerate import __version__, tracking

        # accelerate's own log refuses to be written to without its state, which would take over devices.
        tracking.logger = _Log(logging.getLogger("accelerate.tracking"), {})
        found: Any = tracking.LOGGER_TYPE_TO_CLASS.get(name)
        if found is None:
            raise RmcliError(f"accelerate {__version__} has none of this name")
        return _MAKERS[name](found, run_folder, ids, step)

    return make


def _tensorboard(tracker: Any, run_folder: Path, ids: Mapping[str, Any], step: int) -> Any:
    """In RUN/tensorboard; what later steps than the checkpoint's had written does not count."""
    return tracker("tensorboard", run_folder, purge_step=step + 1 if step else None)


def _wandb(tracker: Any, run_folder: Path, ids: Mapping[str, Any], step: int) -> Any:
    """In RUN/wandb, and on its server where there is a login."""
    wandb = import_module("wandb")
    settings = wandb.Settings(silent=True, console="off", init_timeout=SECONDS, finish_timeout=SECONDS)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    known = {"id": ids["run"], "name": run_folder.name, "resume": "allow"}
    return tracker(project, **known, dir=str(run_folder), mode="offline" if _is_apart() else None, settings=settings)


def what_to_know(name: str, run_folder: Path) -> str | None:
    """What the user should be told of this tracker before it starts."""
    if name != "wandb" or not _is_apart():
        return None
    return f"wandb has no login here: it writes into {run_folder / 'wandb'} alone, which wandb sync sends"


def _is_apart() -> bool:
    """Whether wandb would ask for a login; where WANDB_MODE says what to do it does not."""
    return "WANDB_MODE" not in os.environ and not _is_logged_in()


def _is_logged_in() -> bool:
    """Whether wandb would find a key without asking: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _trackio(tracker: Any, run_folder: Path, ids: Mapping[str, Any], step: int) -> Any:
    """In trackio's own folder, TRACKIO_DIR."""
    return tracker(PROJECT, name=f"{run_folder.name}-{ids['run']}", resume="allow")


def _mlflow(tracker: Any, run_folder: Path, ids: Mapping[str, Any], step: int) -> Any:
    """Where MLFLOW_TRACKING_URI says, else where mlflow does. Its own patience with a server is many minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    return tracker(experiment_name=PROJECT, run_id=ids.get("mlflow"), run_name=run_folder.name)


_MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}
