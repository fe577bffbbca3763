"""A headless Chromium, driven over its DevTools protocol through a pair of pipes: no driver, no package."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.places import missing

CHROMIUM = os.environ.get("RMCLI_CHROMIUM", "/usr/bin/chromium")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--remote-debugging-pipe", "about:blank"),
)
# The browser reads commands from file 3 and answers on file 4, whatever numbers the pipes have here.
_IN_PLACE = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab. Errors that pages log are gathered in `errors`, what they ask the network for in `requests`."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers, self._number = commands, answers, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command. Events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._next()).get("id") != self._number:
            self._keep(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str, media: str = "screen") -> None:
        """Show a file in a window so wide, in the `scheme` light or dark, until it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        for gathered in (self._events, self.errors, self.requests):
            gathered.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._keep(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def _next(self) -> dict[str, Any]:
        parts = bytearray()
        while (one := self._answers.read(1)) != b"\0":
            assert one, "the browser has gone"
            parts += one
        return json.loads(parts)

    def _keep(self, event: dict[str, Any]) -> None:
        name, told = event.get("method", ""), event.get("params", {})
        self._events.append(name)
        is_error = name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert")
        is_error |= name == "Runtime.exceptionThrown"
        is_error |= name == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning")
        if is_error:
            self.errors.append(json.dumps(told)[:500])
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`. CI fails where there is none."""
    if not Path(CHROMIUM).is_file():
        missing(f"a browser at {CHROMIUM} (apt-get install chromium, or RMCLI_CHROMIUM=PATH)")
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    command = [CHROMIUM, f"--user-data-dir={folder}", *_FLAGS]
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_PLACE, str(their_in), str(their_out), *command],
        pass_fds=(their_in, their_out),
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in), os.close(their_out)
    with os.fdopen(our_out, "wb") as commands, os.fdopen(our_in, "rb") as answers:
        try:
            found = Browser(commands, answers)
            yield found
            found._session = None
            found.call("Browser.close")
            process.wait(20)
        finally:
            process.kill()
            process.wait()
