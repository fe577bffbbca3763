"""Which evaluation was the best one, and whether there have been enough without a better one."""

import math
from collections.abc import Mapping
from typing import Any

from rmcli import output
from rmcli.config.sections import Config
from rmcli.config.sections_of_evaluation import direction_of


class Best:
    """The best value of `train.best` so far, and for how many evaluations it has not got better.

    As transformers' EarlyStoppingCallback counts: an evaluation is better when it is ahead of the best one before it
    by more than the threshold; any that is ahead becomes the best.
    """

    def __init__(self, config: Config) -> None:
        train = config.train
        self.figure, self.patience, self.threshold = (
            train.best,
            train.early_stopping_patience,
            train.early_stopping_threshold,
        )
        self.direction = 0 if train.best is None else direction_of(train.best, config.eval.names)
        self.found: dict[str, Any] | None = None  # step and value
        self.stale = 0  # evaluations since the last one that was better
        self.stopped_early: str | None = None  # why, once it has
        self._has_warned = False

    def is_new(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Whether this evaluation is the best so far, which is taken down."""
        if self.figure is None:
            return False
        value = figures.get(self.figure)
        if not isinstance(value, int | float) or not math.isfinite(value):
            self._warn(step)
            self.stale += 1
            return False
        ahead = math.inf if self.found is None else self.direction * (value - self.found["value"])
        self.stale = 0 if ahead > self.threshold else self.stale + 1
        if ahead > 0:
            self.found = {"step": step, "value": value}
        return ahead > 0

    @property
    def has_waited_enough(self) -> bool:
        return self.patience is not None and self.stale >= self.patience

    def stop_early(self, step: int, total_steps: int) -> str:
        """Take down that the run ends here, and say why."""
        verb = "risen" if self.direction > 0 else "fallen"
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        best = f"; best {self.found['value']:.4g} at step {self.found['step']}" if self.found else ""
        self.stopped_early = (
            f"stopped early at step {step} of {total_steps}: {self.figure} has not {verb}{by} for "
            f"{self.stale} evaluation{'' if self.stale == 1 else 's'}{best}"
        )
        return self.stopped_early

    def told(self) -> dict[str, Any]:
        """What a run's result says of it: why it stopped early, and the best evaluation."""
        early = {} if self.stopped_early is None else {"stopped_early": self.stopped_early}
        return early | ({} if self.found is None else {"best": {**self.found, "figure": self.figure}})

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"best": self.found, "stale": self.stale, "stopped_early": self.stopped_early}

    def go_on(self, facts: Mapping[str, Any], is_done: bool) -> None:
        """Take over what a checkpoint holds. A run that stopped early and may train on has not stopped any more."""
        self.found, self.stale = facts["best"], facts.get("stale", 0)
        self.stopped_early = facts.get("stopped_early") if is_done else None

    def _warn(self, step: int) -> None:
        if not self._has_warned:
            output.warn(f"step {step}: {self.figure} is no number, so that this evaluation cannot be the best one")
        self._has_warned = True


def is_over(config: Config, facts: Mapping[str, Any]) -> bool:
    """Whether a run with these facts of its checkpoint has stopped early, and its patience is no larger now."""
    patience = config.train.early_stopping_patience
    return facts.get("stopped_early") is not None and patience is not None and facts["stale"] >= patience
