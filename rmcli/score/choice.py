"""What is written of a prompt and the scores of its answers: all of it, the best answer, or pairs of a better one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf, isnan
from typing import Any, get_args

from rmcli.config.sections import DataSection
from rmcli.errors import ConfigError
from rmcli.plugins import did_you_mean
from rmcli.records import Conversation, PreferenceGroup, as_dicts
from rmcli.rows.map_fns.beside import TOOLS
from rmcli.score.prompts import Prompt
from rmcli.score.results import LOW_SCORE, Summary, rounded
from rmcli.scorer.scorer import Score

PAIRS = get_args(DataSection.model_fields["pairs"].annotation)
LOW_MARGIN, ONE_ANSWER = "below_min_margin", "fewer_than_two_scores"  # why a pair is not written

Result = tuple[dict[str, Any], Mapping[str, Any]]  # what was found, and the user's own columns


@dataclass(frozen=True)
class Choice:
    """What is asked for. Of `by_prompt`, `best_of` and `pairs` at most one; without any, a line per row.

    `best_of`: of each prompt's first so many answers the best. `min_score`: what has no answer of at least that score
    is left out. `min_margin`: pairs whose scores are less apart are left out.
    """

    by_prompt: bool = False
    best_of: int | None = None
    pairs: str | None = None  # one of PAIRS
    min_score: float = -inf
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        named = {"--by-prompt": self.by_prompt or None, "--best-of": self.best_of, "--mine-pairs": self.pairs}
        asked = [name for name, value in named.items() if value is not None]
        if len(asked) > 1:
            raise ConfigError(f"{asked[0]} and {asked[1]} are two kinds of lines", "give one of them")
        if self.min_margin and not self.pairs:
            raise ConfigError("--min-margin is of pairs", "give --mine-pairs too")
        if not 0 <= self.min_margin < inf:
            raise ConfigError(f"--min-margin {self.min_margin}", "it is a number of at least 0")
        if isnan(self.min_score):
            raise ConfigError(f"--min-score {self.min_score}", "it is a number, as scores are")
        if self.best_of is not None and self.best_of < 1:
            raise ConfigError(f"--best-of {self.best_of}", "it is how many answers each prompt has")

    def as_options(self) -> dict[str, Any]:
        """The options that ask for it, with None for a bound that bounds nothing."""
        return {
            "--by-prompt": self.by_prompt,
            "--best-of": self.best_of,
            "--mine-pairs": self.pairs,
            "--min-score": None if self.min_score == -inf else self.min_score,
            "--min-margin": self.min_margin,
        }

    @property
    def takes_prompts(self) -> bool:
        return bool(self.by_prompt or self.best_of or self.pairs)

    @property
    def has_error_lines(self) -> bool:
        """Whether what cannot be scored has a line. The best answers and pairs are data: they hold nothing else."""
        return self.best_of is None and self.pairs is None

    def results(self, prompt: Prompt, scores: Sequence[Score], summary: Summary) -> Iterator[Result]:
        """The lines of a prompt, whose answers have these scores. What is left out is counted."""
        known = [(index, score.value) for index, score in enumerate(scores) if score.value is not None]
        ranked = sorted(known, key=lambda one: -one[1])  # of equal scores the first answer is the better one
        if ranked and rounded(ranked[0][1]) < self.min_score:
            summary.left_out[LOW_SCORE] += 1
        elif self.by_prompt:
            yield _everything(prompt, scores, ranked)
        elif self.best_of and ranked:
            yield _best(prompt, ranked)
        elif self.pairs:
            yield from self._pairs_of(prompt, ranked, summary)

    def _pairs_of(self, prompt: Prompt, ranked: list[tuple[int, float]], summary: Summary) -> Iterator[Result]:
        if len(ranked) < 2:
            summary.left_out[ONE_ANSWER] += 1
            return
        everyone = {"best_worst": [(ranked[0], ranked[-1])], "adjacent": pairwise(ranked)}
        for better, worse in everyone.get(str(self.pairs), combinations(ranked, 2)):
            if rounded(better[1]) < self.min_score:
                summary.left_out[LOW_SCORE] += 1
            elif not better[1] > worse[1] or rounded(better[1] - worse[1]) < self.min_margin:
                summary.left_out[LOW_MARGIN] += 1
            else:
                yield _pair(prompt, better, worse)


def _everything(prompt: Prompt, scores: Sequence[Score], ranked: list[tuple[int, float]]) -> Result:
    group, opening = _group(prompt), prompt.opening()
    result: dict[str, Any] = {
        "scores": [None if score.value is None else rounded(score.value) for score in scores],
        "best": ranked[0][0] if ranked else None,
        "prompt": as_dicts(group.conversations[0][:opening]),
        "completions": [as_dicts(talk[opening:]) for talk in group.conversations],
        **_beside(group.template_arguments),
    }
    if any(score.error for score in scores):
        result["errors"] = [score.error for score in scores]
    if any(score.truncated for score in scores):
        result["truncated"] = True
    return result, prompt.own(range(len(scores)))


def _best(prompt: Prompt, ranked: list[tuple[int, float]]) -> Result:
    index, value = ranked[0]
    group, opening = _group(prompt), prompt.opening()
    talk: Conversation = group.conversations[index]
    result = {
        "score": rounded(value),
        "margin": rounded(value - ranked[1][1]) if len(ranked) > 1 else None,
        "best": index,
        "prompt": as_dicts(talk[:opening]),
        "completion": as_dicts(talk[opening:]),
        **_beside(group.template_arguments),
    }
    return result, prompt.own([index])


def _pair(prompt: Prompt, better: tuple[int, float], worse: tuple[int, float]) -> Result:
    """As `prepare` and TRL's trainers read it."""
    group, opening = _group(prompt), prompt.opening()
    chosen, rejected = group.conversations[better[0]], group.conversations[worse[0]]
    result = {
        "chosen_score": rounded(better[1]),
        "rejected_score": rounded(worse[1]),
        "margin": rounded(better[1] - worse[1]),
        "prompt": as_dicts(chosen[:opening]),
        "chosen": as_dicts(chosen[opening:]),
        "rejected": as_dicts(rejected[opening:]),
        **_beside(group.template_arguments),
    }
    return result, prompt.own([better[0], worse[0]])


def _group(prompt: Prompt) -> PreferenceGroup:
    assert prompt.group is not None
    return prompt.group


def _beside(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets beside the messages, in the columns that it is read from."""
    tools = {TOOLS: arguments[TOOLS]} if TOOLS in arguments else {}
    others = {name: value for name, value in arguments.items() if name != TOOLS}
    return tools | ({"chat_template_kwargs": others} if others else {})


def asked_for(
    by_prompt: bool, best_of: int | None, pairs: str | None, min_margin: float, min_score: float | None
) -> Choice:
    """The choice that a command's options make. Raises ConfigError where they do not go together."""
    if pairs is not None and pairs not in PAIRS:
        raise ConfigError(f"--mine-pairs {pairs}: no such pairs", did_you_mean(pairs, PAIRS))
    return Choice(by_prompt, best_of, pairs, -inf if min_score is None else min_score, min_margin)
