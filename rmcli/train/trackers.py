"""A run's figures in experiment trackers, by accelerate's classes for them without its Accelerator.

An Accelerator would take over devices and processes. The first process alone imports a tracker. What goes wrong in
one is said once, and the run goes on without it: metrics.jsonl has every figure.
"""

import io
import json
import math
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.config.sections import Config
from rmcli.installed import install_command
from rmcli.parallel import world
from rmcli.train import tracker_options
from rmcli.train.job import Job

IDS = "trackers.json"  # in the run folder: how trackers know the run, and which have been told its configuration


class Trackers:
    """`working`: those that do, by name; accelerate's GeneralTracker each."""

    def __init__(self) -> None:
        self.working: dict[str, Any] = {}

    def start(self, name: str, make: Callable[[], Any], config: Mapping[str, Any] | None) -> None:
        """Make it, and tell it the configuration of a run that begins."""

        def started() -> None:
            tracker = make()
            tracker.main_process_only = False  # this is the first process: accelerate need not look
            if hasattr(tracker, "start"):
                tracker.start()
            if config is not None:
                tracker.store_init_configuration(dict(config))
            self.working[name] = tracker

        self._try(name, started)

    def inside(self, name: str) -> Any:
        """What the tracker itself has as its run; None where it does not work."""
        return self.working[name].tracker if name in self.working else None

    def log(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, under its names."""
        numbers = {key: value for key, value in values.items() if key != "step" and _is_number(value)}
        for name, tracker in list(self.working.items()):
            self._try(name, lambda tracker=tracker: tracker.log(numbers, step=values["step"]))

    def finish(self) -> None:
        for name, tracker in list(self.working.items()):
            self._try(name, tracker.finish)
            self.working.pop(name, None)

    def _try(self, name: str, work: Callable[[], Any]) -> None:
        try:
            with _quietly():
                work()
        except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever it raises, the run goes on)
            self.working.pop(name, None)
            said = " ".join(str(error).split()) or type(error).__name__
            hint = f": {install_command(name)}" if isinstance(error, ModuleNotFoundError) else ""
            output.warn(f"the tracker {name} does not work, and the run goes on without it: {said[:200]}{hint}")


@contextmanager
def tracking(job: Job) -> Iterator[Trackers]:
    """The trackers that the configuration names, for as long as the run lasts. Of other processes there are none."""
    trackers, names = Trackers(), dict.fromkeys(job.config.train.trackers)
    if not names or not world.is_first():
        yield trackers
        return
    ids = _ids_of(job.run_folder) or {"run": uuid.uuid4().hex[:8], "told": []}
    for name in names:
        if (told := tracker_options.what_to_know(name, job.run_folder)) is not None:
            output.say(told)
        make = tracker_options.maker(name, job.run_folder, ids, 0 if job.past is None else job.past.step)
        trackers.start(name, make, None if name in ids["told"] else flat(job.config))
    if (active := trackers.inside("mlflow")) is not None:
        ids["mlflow"] = active.info.run_id
    _keep(job.run_folder, {**ids, "told": sorted({*ids["told"], *trackers.working})})
    try:
        yield trackers
    finally:
        trackers.finish()


def flat(config: Config) -> dict[str, Any]:
    """section.key -> value, as every tracker takes them: numbers, truth values and texts."""
    plain = {
        f"{section}.{key}": value for section, keys in config.model_dump().items() for key, value in keys.items()
    }
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in plain.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ids_of(run_folder: Path) -> dict[str, Any]:
    try:
        ids = json.loads((run_folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) and ids.keys() >= {"run", "told"} else {}


def _keep(run_folder: Path, ids: Mapping[str, Any]) -> None:
    (run_folder / IDS).write_text(json.dumps(ids) + "\n", encoding="utf-8")


@contextmanager
def _quietly() -> Iterator[None]:
    """Streams are rmcli's: what a tracker prints or warns of is dropped, and what it asks has no answer."""
    stdin = sys.stdin
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        sys.stdin = io.StringIO()
        try:
            yield
        finally:
            sys.stdin = stdin
