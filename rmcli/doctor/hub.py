"""Whether the Hugging Face Hub answers, asked by a thread while the rest is looked at; never for long."""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rmcli.doctor.finding import Finding, load
from rmcli.errors import RmcliError, explained_by

TOPIC = "hub"
SECONDS = 2.0  # to answer; a name server that is not there takes half a minute
_LOCAL = "local models and data need no Hub; else look at the network, HTTPS_PROXY and HF_ENDPOINT"


class Question:
    """A HEAD request to the Hub, on its way; `look` waits for what is left of SECONDS."""

    def __init__(self) -> None:
        self._reply: tuple[int | None, str] | None = None  # an HTTP status, or why there is none
        # Imported before the thread begins: two threads that import one package may find it half done.
        loaded = [load(name) for name in ("huggingface_hub", "huggingface_hub.constants", "huggingface_hub.utils")]
        modules: tuple[Any, ...] = tuple(module for module, _ in loaded)
        self._hub, self._constants, self._utils = modules
        self._broken = next((broken for _, broken in loaded if broken is not None), None)
        self._offline = self._broken is not None or bool(self._constants.HF_HUB_OFFLINE)
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        if not self._offline:
            with suppress(RuntimeError):  # no thread to be had: no answer, then
                self._thread.start()

    def _ask(self) -> None:
        try:
            # What the error itself says may hold the address as it was given, with a password.
            with explained_by(lambda error: RmcliError(type(error).__name__)):
                answer = self._utils.get_session().head(self._constants.ENDPOINT, timeout=SECONDS)
                self._reply = answer.status_code, ""
        except RmcliError as error:
            self._reply = None, error.message

    def look(self) -> Iterator[Finding]:
        if self._broken is not None:
            yield Finding(TOPIC, "endpoint", "fault", f"huggingface_hub cannot be imported: {self._broken}")
            return
        endpoint = without_password(self._constants.ENDPOINT)
        yield self._access(endpoint)
        yield self._token()

    def _access(self, endpoint: str) -> Finding:
        facts: dict[str, Any] = {"endpoint": endpoint, "offline": self._offline, "reached": False}
        if self._offline:
            hint = "unset HF_HUB_OFFLINE to load what is not in the cache"
            return Finding(TOPIC, "endpoint", "note", f"{endpoint} is not asked: HF_HUB_OFFLINE is set", hint, facts)
        if self._thread.is_alive():
            self._thread.join(max(0.0, SECONDS - (time.monotonic() - self._began)))
        status, broken = self._reply or (None, f"no answer in {SECONDS:g} s")
        if status is None:
            return Finding(TOPIC, "endpoint", "note", f"{endpoint} cannot be reached: {broken}", _LOCAL, facts)
        facts |= {"reached": True, "status": status}
        said = f"{endpoint} answers (HTTP {status})"
        return Finding(TOPIC, "endpoint", *(("note", said, _LOCAL) if status >= 500 else ("ok", said, None)), facts)

    def _token(self) -> Finding:
        """Whether there is one; the token itself goes nowhere."""
        there = bool(self._hub.get_token())
        said = "there" if there else "none: gated models, such as Llama and Gemma, are closed"
        hint = None if there else "hf auth login, or HF_TOKEN"
        return Finding(TOPIC, "token", "ok" if there else "note", said, hint, {"token": there})


def without_password(url: str) -> str:
    """The address without the user name and password that stand before an @."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
