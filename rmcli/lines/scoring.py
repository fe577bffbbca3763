"""Lines to scores, a window at a time."""

from collections.abc import Callable, Sequence

from rmcli.lines.read import Line
from rmcli.records import PreferenceGroup, TokenGroup
from rmcli.scorer.scorer import Scored, Scorer


def score_lines(scorer: Scorer, window: Sequence[Line], advance: Callable[[float], None]) -> list[Scored | str]:
    """The scores of each line that has something to score, or why it has none; `advance` is told of lines done.

    Of a prepared folder all lines are tokens already.
    """
    advance(sum(line.group is None for line in window))
    groups = [line.group for line in window if line.group is not None]
    tokens = [group for group in groups if isinstance(group, TokenGroup)]
    if tokens:
        return scorer.score_tokens(tokens, advance)
    return scorer.score([group for group in groups if isinstance(group, PreferenceGroup)], advance)
