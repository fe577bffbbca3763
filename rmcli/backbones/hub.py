"""Asking the Hugging Face Hub without waiting for it: retries of a machine that is off line take half a minute."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from rmcli import output

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
