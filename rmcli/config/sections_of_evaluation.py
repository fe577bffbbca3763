"""What a run is evaluated on beside the pairs held out, and by which figure its best evaluation is told: [eval]."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field, model_validator

from rmcli.config.section import Section

# The figures of an evaluation, in metrics.jsonl as eval_FIGURE and of a set eval_NAME_FIGURE: 1 where more is better,
# -1 where less is, 0 where neither is.
FIGURES = {
    **{"loss": -1, "pair_loss": -1, "penalty": 0},
    **{"accuracy": 1, "margin": 1, "score_mean": 0, "score_min": 0, "score_max": 0, "pairs": 0},
    **{"shorter_pairs": 0, "shorter_accuracy": 1, "longer_pairs": 0, "longer_accuracy": 1},
    **{"ece": -1, "brier": -1, "log_loss": -1, "temperature": 0},
    **{"length_spearman": 0, "longer_wins": 0, "beyond_bound": 0},
}
HELD_OUT = "held-out"  # what the pairs held out are called beside sets with names


class EvalSetSection(Section):
    """A prepared set to evaluate on: an `[[eval.sets]]` table."""

    name: str = Field(
        min_length=1, max_length=64, description="what its figures are called: letters, digits, _ and -"
    )
    path: str = Field(min_length=1, description="folder that `rmcli prepare` wrote, for the same tokenizer")
    split: Literal["train", "eval"] = Field("eval", description="which of its splits")


class EvalSection(Section):
    """Sets that a run is evaluated on beside its own pairs held out, every `train.eval_steps` and at its end."""

    sets: list[EvalSetSection] = Field(
        [], description="[[eval.sets]] tables; the figures of each are eval_NAME_accuracy, ... in metrics.jsonl"
    )

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.sets]

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> "EvalSection":
        taken = dict.fromkeys(keys_of([]), "the pairs held out")
        for number, name in enumerate(self.names):
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"name = {name!r}: a set's name has letters, digits, _ and - only")
            if name in self.names[:number]:
                raise ValueError(f"two sets have the name {name!r}")
            if name in (*FIGURES, HELD_OUT):
                raise ValueError(f"name = {name!r} is what rmcli calls something of its own: choose another")
            for key in keys_of([name])[len(FIGURES) :]:
                if key in taken:
                    raise ValueError(f"name = {name!r}: its {key} would be that of {taken[key]}: choose another")
                taken[key] = f"the set {name!r}"
        return self


def key_of(figure: str, name: str | None = None) -> str:
    """What a figure is called in metrics.jsonl: of the set of this name, or of the pairs held out."""
    return f"eval_{figure}" if name is None else f"eval_{name}_{figure}"


def keys_of(names: Iterable[str]) -> list[str]:
    """Those of all figures, of the pairs held out and of the sets of these names."""
    return [key_of(figure, name) for name in (None, *names) for figure in FIGURES]


def split_key(key: str, names: Sequence[str]) -> tuple[str | None, str]:
    """The set's name (None: the pairs held out) and the figure that `key_of` made the key of. Raises KeyError."""
    return {key_of(figure, name): (name, figure) for name in (None, *names) for figure in FIGURES}[key]


def check_best(best: str, names: Sequence[str]) -> None:
    """Raise ValueError where there is no such figure, or no saying which of two values of it is the better one."""
    if best not in keys_of(names):
        told = [figure for figure, direction in FIGURES.items() if direction]
        of_sets = f", or eval_NAME_FIGURE of a set: NAME is one of {', '.join(names)}" if names else ""
        raise ValueError(
            f"train.best = {best!r} is no figure: there is eval_FIGURE{of_sets}; FIGURE is one of {', '.join(told)}"
        )
    if not direction_of(best, names):
        raise ValueError(f"train.best = {best!r}: neither more nor less of it is better")


def direction_of(best: str, names: Sequence[str]) -> int:
    """1 where more of the figure is better, -1 where less is, 0 where neither is."""
    return FIGURES[split_key(best, names)[1]]
