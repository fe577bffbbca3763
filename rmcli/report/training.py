"""The curves of training, of one run or of several over each other."""

from collections.abc import Mapping
from typing import Any

from rmcli.report.plots.curves import Curve, curves
from rmcli.report.plots.svg import Plot
from rmcli.report.run_folder import Run

# Of a run by itself and of runs over each other: what is drawn, what the log calls it, what it means.
_SHARED = (
    ("loss", "loss", "What training minimises: pair loss and penalty."),
    ("margin", "margin", "Mean difference of the two scores of a pair."),
    ("learning rate", "lr", "Of the backbone, after each step shown."),
    ("gradient norm", "grad_norm", "Mean of the steps of a log line, before clipping."),
    ("tokens per second", "tokens_per_s", "Tokens that training computed, prompts that answers share counted once."),
)


def run_curves(run: Run) -> list[Plot]:
    """Of one run: training as lines, evaluations as points."""
    found = [
        _beside_evaluation(run, "loss", *_SHARED[0][1:]),
        _beside_evaluation(run, "accuracy", "accuracy", "Share of pairs whose better answer has the higher score."),
        _by_set(run, "accuracy of other sets", "accuracy", "At each evaluation.", with_held_out=False),
        _parts(run),
        _beside_evaluation(run, "margin", *_SHARED[1][1:]),
        _by_set(run, "held-out log-loss", "log_loss", "Of sigmoid(margin); a coin: 0.693.", with_held_out=True),
        _by_set(
            run, "held-out calibration error", "ece", "The mean gap of confidence and accuracy.", with_held_out=True
        ),
        _scores(run),
        *(curves({title: Curve(run.points(name), 0)}, title, title, caption) for title, name, caption in _SHARED[2:]),
    ]
    return [plot for plot in found if plot is not None]


def _beside_evaluation(run: Run, title: str, name: str, caption: str) -> Plot | None:
    found = {"training": Curve(run.points(name), 0), "held out": Curve(run.points(f"eval_{name}"), 1, is_marked=True)}
    return curves(found, title, title, caption)


def _parts(run: Run) -> Plot | None:
    """Accuracy of held-out pairs by which answer is longer."""
    names = ("shorter", "longer")
    found = {
        f"the better one is {name}": Curve(run.points(f"eval_{name}_accuracy"), place, is_marked=True)
        for place, name in enumerate(names)
    }
    title = "held-out accuracy by length"
    return curves(found, title, title, "Of pairs whose better answer is the shorter one, in tokens, and the longer.")


def _by_set(run: Run, title: str, figure: str, caption: str, *, with_held_out: bool) -> Plot | None:
    """An evaluation's figure of the pairs held out and of each set with a name."""
    keys = {"held out": f"eval_{figure}"} if with_held_out else {}
    keys |= {name: f"eval_{name}_{figure}" for name in run.sets}
    found = {name: Curve(run.points(key), place, is_marked=True) for place, (name, key) in enumerate(keys.items())}
    return curves(found, title, title, caption)


def _scores(run: Run) -> Plot | None:
    low, high = dict(run.points("score_min")), dict(run.points("score_max"))
    steps = [step for step in low if step in high]
    band = ([(step, low[step]) for step in steps], [(step, high[step]) for step in steps]) if steps else None
    mean = {"mean": Curve(run.points("score_mean"), 0)}
    return curves(mean, "scores", "scores", "Mean of all scores, and their range from lowest to highest.", band)


def overlaid_curves(runs: Mapping[str, Run]) -> list[Plot]:
    """Of several runs by letter: a colour each, training apart from evaluations."""
    wanted: list[tuple[str, str, str]] = [
        _SHARED[0],
        ("held-out loss", "eval_loss", "At each evaluation."),
        ("accuracy in training", "accuracy", "Share of the pairs of a log line that are ordered right."),
        ("held-out accuracy", "eval_accuracy", "At each evaluation."),
        *(
            (f"accuracy of {name}", f"eval_{name}_accuracy", "At each evaluation.")
            for name in dict.fromkeys(name for run in runs.values() for name in run.sets)
        ),
        *_SHARED[1:],
    ]
    found = [_over(runs, *one) for one in wanted]
    return [plot for plot in found if plot is not None]


def _over(runs: Mapping[str, Run], title: str, name: str, caption: str) -> Plot | None:
    lines = {
        letter: Curve(run.points(name), place, is_marked=name.startswith("eval_"))
        for place, (letter, run) in enumerate(runs.items())
    }
    return curves(lines, title, title, caption)


def last(run: Run, name: str) -> Any:
    """The last finite value of a figure, or None."""
    points = run.points(name)
    return points[-1][1] if points else None
