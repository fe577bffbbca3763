"""`rmcli score`: lines of conversations, pairs or answers -> JSON lines of scores, in the same order."""

import time
from collections.abc import Iterator
from itertools import islice

from rmcli import output
from rmcli.config.sections import Config
from rmcli.rows.map_fns.contract import Contract
from rmcli.score import lines
from rmcli.score.lines import Line
from rmcli.score.results import Summary, open_output, output_file
from rmcli.scorer.load import load_encoder, load_scorer
from rmcli.scorer.scorer import WINDOW, Scored, Scorer

SECONDS_BETWEEN_LINES = 10.0  # of the log, where there is no terminal


def run(config: Config, source: str, target: str, map_fn: str | None = None, overwrite: bool = False) -> Summary:
    """Score every line of `source` into `target` ("-" is stdin and stdout).

    Raises ConfigError when `target` is there already and not to be overwritten, or holds anything but scores.
    """
    results_file = output_file(source, target, overwrite)
    encoder = load_encoder(config)
    contract = Contract(encoder.template_reads.message_keys, config.data.allow_no_prompt)
    given = lines.read(source, map_fn, contract, config.data.max_row_bytes)
    scorer = load_scorer(config, encoder)
    summary = Summary()
    total = lines.count(source)
    with output.progress("scoring", total, "lines") as progress, open_output(results_file) as results:
        log = _Log(progress, total)
        try:
            while window := list(islice(given, WINDOW)):
                for line, scored in zip(window, _score_window(scorer, window, log), strict=True):
                    results.write(summary.add(line, scored) + "\n")
                results.flush()
        except KeyboardInterrupt:
            of_all = "" if total is None else f" of {total:,}"
            kept = "their scores are written" if target == "-" else f"nothing is written to {target}"
            output.warn(f"interrupted after {summary.lines:,}{of_all} lines; {kept}")
            raise
    contract.report_keys(source)  # columns that are not read come back with the scores
    return summary


def _score_window(scorer: Scorer, window: list[Line], log: "_Log") -> Iterator[Scored | str]:
    """One result per line, in order."""
    log.advance(sum(line.group is None for line in window))
    groups = [line.group for line in window if line.group is not None]
    scored = iter(scorer.score(groups, log.advance))
    return (next(scored) if line.group is not None else str(line.problem) for line in window)


class _Log:
    """How far scoring is: a bar on a terminal, else a line every few seconds."""

    def __init__(self, progress: output.Progress, total: int | None) -> None:
        self.progress, self.total = progress, total
        self.done = 0
        self.started = self.said = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        self.progress.advance(count)
        now = time.monotonic()
        if not count or now - self.said < SECONDS_BETWEEN_LINES or output.draws_bar():
            return
        self.said = now
        speed = self.done / (now - self.started)
        fields = {"lines": f"{self.done:,}", "lines/s": f"{speed:,.1f}"}
        if self.total:
            fields |= {"of": f"{self.total:,}", "left": _clock((self.total - self.done) / speed)}
        self.progress.line(fields)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
