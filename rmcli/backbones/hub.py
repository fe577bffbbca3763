"""Asking the Hugging Face Hub without waiting for it: retries of a machine that is off line take half a minute."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rmcli import output
from rmcli.errors import explained

SECONDS = 5.0  # for a connection: a slow line takes one or two, a wall that swallows packets takes for ever


def is_reachable(endpoint: str) -> bool:
    """Whether the Hub's host takes a connection. Behind a proxy only the proxy knows: yes, then."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if {parts.scheme, "all"} & getproxies().keys() and not proxy_bypass(host):
        return True
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((host, port), SECONDS).close()
    except (OSError, ValueError):  # ValueError: a port that is none
        return False
    return True


@contextmanager
def asking() -> Iterator[None]:
    """Inside, Hub names come from the cache alone when this machine is off line, and retries are not printed."""
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    if not was_offline and not is_reachable(constants.ENDPOINT):
        output.detail(f"{constants.ENDPOINT} cannot be reached: only cached files are used")
        constants.HF_HUB_OFFLINE = True
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        hub_log.setLevel(level)


@contextmanager
def only_cached() -> Iterator[None]:
    """Inside, Hub names come from the cache alone."""
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


# Not fetched: weights in forms that are not read here, code that is not run.
_OTHER_FORMATS = ("*.py", "*.h5", "*.msgpack", "*.ot", "*.onnx*", "*.gguf", "*.pt", "*.pth", "*.tflite", "*.mlmodel")
_PICKLED = ("pytorch_model*.bin", "pytorch_model*.json")


def fetch_model(name: str, revision: str | None = None) -> Path:
    """The folder of the cache with a model's files: safetensors, or pickled weights where there are no others.

    Raises RmcliError where they cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hint = "check the name, the revision and your access (hf auth login), or give a local folder"
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with asking(), explained(f"cannot fetch {name} from the Hub", hint):
            folder = Path(
                snapshot_download(
                    name, revision=revision, ignore_patterns=[*_OTHER_FORMATS, *_PICKLED, "*.bin", "*/*"]
                )
            )
            if not list(folder.glob("*.safetensors")):
                snapshot_download(name, revision=revision, allow_patterns=list(_PICKLED))
            return folder
    finally:
        if shown:
            enable_progress_bars()
