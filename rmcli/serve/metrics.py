"""What the server has done, in Prometheus' text format (version 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class _Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(_BOUNDS, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        found, total = [], 0
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{labels + "," if labels else ""}le="{bound}"}} {total}')
        inside = f"{{{labels}}}" if labels else ""
        return [*found, f"{name}_sum{inside} {self.sum!r}", f"{name}_count{inside} {total}"]


class Metrics:
    """Counters of one server. Of one event loop."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.conversations: Counter[str] = Counter()  # by result: scored, or why not
        self.tokens = 0
        self.batch_conversations = 0
        self._seconds: dict[str, _Histogram] = {}
        self._batches = _Histogram()

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """`path` is one that the server has: those that clients make up would grow without end."""
        self.requests[path, status] += 1
        self._seconds.setdefault(path, _Histogram()).add(seconds)

    def note_batch(self, conversations: int, tokens: int, seconds: float) -> None:
        self.batch_conversations += conversations
        self.tokens += tokens
        self._batches.add(seconds)

    def text(self, gauges: Mapping[str, tuple[float, str]]) -> str:
        """All of it, and `gauges`: name -> (value, help)."""
        lines = _counter("requests_total", "Requests by path and HTTP status.")
        lines += [
            f'rmcli_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines += ["# HELP rmcli_request_seconds From a request's first byte to its answer."]
        lines += ["# TYPE rmcli_request_seconds histogram"]
        for path, histogram in sorted(self._seconds.items()):
            lines += histogram.lines("rmcli_request_seconds", f'path="{path}"')
        lines += _counter("conversations_total", "Conversations by result: scored, or why not.")
        lines += [
            f'rmcli_conversations_total{{result="{result}"}} {count}'
            for result, count in sorted(self.conversations.items())
        ]
        lines += [*_counter("tokens_total", "Tokens scored."), f"rmcli_tokens_total {self.tokens}"]
        lines += _counter("batch_conversations_total", "Conversations that ran in batches.")
        lines += [f"rmcli_batch_conversations_total {self.batch_conversations}"]
        lines += ["# HELP rmcli_batch_seconds Of one batch on the model.", "# TYPE rmcli_batch_seconds histogram"]
        lines += self._batches.lines("rmcli_batch_seconds")
        for name, (value, help_) in gauges.items():
            lines += [f"# HELP rmcli_{name} {help_}", f"# TYPE rmcli_{name} gauge", f"rmcli_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _counter(name: str, help_: str) -> list[str]:
    return [f"# HELP rmcli_{name} {help_}", f"# TYPE rmcli_{name} counter"]
