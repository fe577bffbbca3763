"""How much of a suite was scored: a number is the official one where all of it was, and nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rmcli.evaluate.suites.suite import Asked, Figures, Judgement, Suite
from rmcli.scorer.scorer import Score


@dataclass
class Coverage:
    """The rows of a suite as they come in, each scored or left out for a reason.

    A row counts only when each of its answers has a score: else it is left out, and the figures are not complete.
    """

    judged: list[Judgement] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    first_left_out: str | None = None

    def add(self, asked: Asked, scores: Sequence[Score], where: str) -> None:
        values = [score.value for score in scores if score.value is not None]
        if len(values) < len(scores):
            self.leave_out(next(score.error for score in scores if score.error is not None), where)
            return
        self.judged.append((asked, values))
        self.truncated += any(score.truncated for score in scores)

    def leave_out(self, reason: str, where: str, detail: str | None = None) -> None:
        self.left_out[reason] += 1
        self.first_left_out = self.first_left_out or f"{reason}{f' ({detail})' if detail else ''} at {where}"


def figures(suite: Suite, covered: Coverage) -> Figures:
    """The suite's own figures, and before them how complete they are.

    `complete`: as many rows as the suite has, by part, were scored whole; repeated ones are not looked for. `rows`:
    `official`, `read`, `scored`, `missing` (fewer than the official count; those left out are among them), `extra`
    (more), `left_out` by reason, with `first_left_out`, `truncated` (scored, but an answer's conversation was cut),
    and the `conversations` of all scored rows.
    `not_official`: what differs, in words, or None.
    """
    scored = Counter(asked.counted for asked, _ in covered.judged)
    missing = sum(max(0, count - scored[name]) for name, count in suite.official.items())
    extra = sum(max(0, count - suite.official.get(name, 0)) for name, count in scored.items())
    rows = {
        "official": sum(suite.official.values()),
        "read": len(covered.judged) + covered.left_out.total(),
        "scored": len(covered.judged),
        "missing": missing,
        "extra": extra,
        "left_out": dict(covered.left_out),
        "first_left_out": covered.first_left_out,
        "truncated": covered.truncated,
        "conversations": sum(len(scores) for _, scores in covered.judged),
    }
    said = _not_official(rows)
    return {"complete": said is None, "not_official": said, "rows": rows, **suite.rules(covered.judged)}


def _not_official(rows: Figures) -> str | None:
    parts = []
    if rows["missing"]:
        parts.append(f"{rows['missing']:,} of {rows['official']:,} rows missing")
    if rows["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rows["left_out"].items())
        parts.append(f"{sum(rows['left_out'].values()):,} left out ({reasons}; first: {rows['first_left_out']})")
    if rows["extra"]:
        parts.append(f"{rows['extra']:,} more than there should be")
    if rows["truncated"]:
        parts.append(f"{rows['truncated']:,} scored truncated")
    return f"this is not the official number: {', '.join(parts)}" if parts else None
