"""What inspect-token found: candidates with their evidence, ranked, and what was not looked at."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rmcli.tokens import evidence
from rmcli.tokens.evidence import Evidence, RowSummary

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class CorpusSummary:
    """What --corpus was. `num_texts` counts texts, or conversations of a prepared folder."""

    source: str
    num_texts: int
    num_tokens: int
    num_unreadable: int
    has_text: bool


@dataclass(frozen=True)
class Configured:
    """The reward token that a preset or file names, against the verdict. `rank` is None when it is no candidate."""

    id: int | None
    token: str | None
    rank: int | None
    remark: str


@dataclass(frozen=True)
class Report:
    """`candidates` are ranked best first; `ruled_out` are special or reserved ids that cannot serve.

    `num_embedding_rows` is None when there is neither model config nor weights.
    """

    name: str
    num_embedding_rows: int | None
    num_tokens: int
    candidates: tuple[Evidence, ...]
    ruled_out: tuple[Evidence, ...]
    rows: RowSummary | None
    corpus: CorpusSummary | None
    configured: Configured | None
    not_looked_at: tuple[str, ...]

    @property
    def best(self) -> Evidence:
        return self.candidates[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as --json prints it."""
        plain = asdict(self)
        for rank, (entry, candidate) in enumerate(zip(plain["candidates"], self.candidates, strict=True), 1):
            entry["rank"] = rank
            behind = evidence.why_behind(self.best, candidate)
            entry["reason"] = behind if rank > 1 else "; ".join(evidence.why_first(candidate))
        for entry, candidate in zip(plain["ruled_out"], self.ruled_out, strict=True):
            entry["reason"] = evidence.why_ruled_out(candidate)
        return {**plain, "toml": self.best.toml()}
