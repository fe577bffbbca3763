"""`rmcli score`: rows of conversations, pairs or answers -> JSON lines of scores, in the same order."""

import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rmcli import output
from rmcli.config.sections import Config, SourceSection
from rmcli.errors import ConfigError, Terminated
from rmcli.lines import inputs
from rmcli.lines.of_input import lines_of
from rmcli.lines.team import scored
from rmcli.model import hashes
from rmcli.model.device import pick_device
from rmcli.parallel import world
from rmcli.parallel.agreement import check_same
from rmcli.rows.map_fns.apply import find_map_function, source_sha256
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.known import AUTO, NAMED
from rmcli.runs.record import versions
from rmcli.score.choice import Choice
from rmcli.score.places import Facts, Stream, place
from rmcli.score.results import Summary, output_file
from rmcli.score.unfinished import Unfinished
from rmcli.score.units import Prompts, Rows
from rmcli.scorer.load import load_encoder, load_scorer
from rmcli.scorer.windows import WINDOW, windows

SECONDS_BETWEEN_LINES = 10.0  # of the log, where there is no terminal


def run(
    config: Config,
    source: SourceSection,
    target: str,
    map_fn: str | None = None,
    overwrite: bool = False,
    choice: Choice | None = None,
    is_verified: bool = False,
) -> Summary:
    """Score what `source` holds into `target` ("-" is stdin and stdout), or go on with what was begun of it.

    Of several processes all score; the first one reads, writes and gives the summary. `is_verified`: the model's
    files are known to be as its folder lists them. Raises ConfigError when `target` is there already and not to be
    overwritten, holds anything but scores, or was begun with other settings.
    """
    choice = choice or Choice()
    if choice.takes_prompts and inputs.is_prepared(source.path):
        raise ConfigError(
            f"input {source.path} is prepared: it holds tokens, and prompts and answers are written as text",
            f"give {source.path}/eval.jsonl, or what it was prepared from",
        )
    encoder = load_encoder(config)
    units: Any = Prompts(choice) if choice.takes_prompts else Rows(choice)
    if world.size() > 1:
        check_same({**_settings(config, source, map_fn, choice, is_verified), **versions()})
    if not world.is_first():
        scorer = load_scorer(config, encoder)
        for _ in scored(iter(()), lambda window: units.score(scorer, window, lambda count: None)):
            pass
        return Summary()
    results_file = output_file(inputs.files_read(source), target, overwrite)
    contract = Contract(encoder.template_reads.message_keys, config.data.allow_no_prompt)

    def facts() -> tuple[Facts, Facts]:
        return _settings(config, source, map_fn, choice, is_verified), _machine(config)

    with place(results_file, facts) as results:
        given, total = lines_of(config, source, map_fn, contract, encoder, results.done.rows)
        results.take_as_read(line.digest for line in islice(given, results.done.rows))
        summary = _summary_so_far(results, contract)
        scorer = load_scorer(config, encoder)
        with output.progress("scoring", total, "lines") as progress, _told_how_far(results, total, target):
            log = _Log(progress, total, results.done.rows)
            waiting = windows(units.of(given), units.size, WINDOW)
            for window, found in scored(waiting, lambda window: units.score(scorer, window, log.advance)):
                for digests, texts in units.written(window, found, summary):
                    for text in texts:
                        results.write(text + "\n")
                    for digest in digests:
                        results.count(digest)
                results.commit({**summary.as_state(), "unread_keys": [*contract.unread_keys]})
                log.reach(results.done.rows)
    contract.report_keys(source.path)  # columns that are not read come back with the scores
    return summary


def _summary_so_far(results: Stream | Unfinished, contract: Contract) -> Summary:
    state = dict(results.done.summary)
    contract.unread_keys.update(dict.fromkeys(state.pop("unread_keys", ())))
    return Summary.of_state(state) if state else Summary()


def _settings(
    config: Config, source: SourceSection, map_fn: str | None, choice: Choice, is_verified: bool
) -> dict[str, Any]:
    """All that the lines depend on besides the rows and the machine."""
    function_sha256 = None
    if map_fn not in (None, AUTO, *NAMED):
        with suppress(ConfigError):  # a builtin has no source
            function_sha256 = source_sha256(find_map_function(map_fn))
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("model", "data")}
    keys = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    del keys["data.num_proc"]
    model = Path(str(config.model.pretrained_model_name_or_path))
    return {
        "input": source.model_dump(mode="json"),
        "map_fn": map_fn,
        "map_fn_sha256": function_sha256,
        "model_sha256": hashes.of_folder(model, is_verified),
        **choice.as_options(),
        **keys,
        "train.device": config.train.device,
    }


def _machine(config: Config) -> dict[str, Any]:
    """On what bits depend besides the settings."""
    return {**versions(), "device": str(pick_device(config).type), "threads": torch.get_num_threads()}


class _told_how_far:
    """Where a signal ends the scoring, it is said how far it came and what is kept."""

    def __init__(self, results: Stream | Unfinished, total: int | None, target: str) -> None:
        self._results, self._total, self._target = results, total, target

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt | Terminated):
            return
        rows, part = self._results.done.rows, self._results.part
        if part is None:
            kept = "their scores are written"
        elif rows:
            kept = f"{part} holds their scores, and the same command goes on from there"
        else:
            kept = f"nothing is written to {self._target}"
        of_all = "" if self._total is None else f" of {self._total:,}"
        output.warn(f"interrupted after {rows:,}{of_all} lines; {kept}")


class _Log:
    """How far scoring is: a bar on a terminal, else a line every few seconds."""

    def __init__(self, progress: output.Progress, total: int | None, done: int) -> None:
        self.progress, self.total = progress, total
        self.done = self.before = float(done)
        self.started = self.said = time.monotonic()
        progress.advance(done)

    def reach(self, rows: int) -> None:
        """So many are done, those of other processes among them."""
        self.advance(rows - self.done)

    def advance(self, count: float) -> None:
        self.done += count
        self.progress.advance(count)
        now = time.monotonic()
        if not count or now - self.said < SECONDS_BETWEEN_LINES or output.draws_bar():
            return
        self.said = now
        speed = (self.done - self.before) / (now - self.started)
        fields = {"lines": f"{self.done:,.0f}", "lines/s": f"{speed:,.1f}"}
        if self.total:
            fields |= {"of": f"{self.total:,}", "left": _clock((self.total - self.done) / speed)}
        self.progress.line(fields)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
