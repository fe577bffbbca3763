"""What became of every input row: `in = kept + rejected + duplicates + not_taken`, per source and in all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.rows.hints import hint

# A share of rejects says something only from so many rows on; a file may begin with its bad ones.
ROWS_BEFORE_A_SHARE = 1000
FATES = ("kept", "rejected", "duplicates", "not_taken")


class TooManyRejected(RmcliError):
    """So many rows are rejected that nothing is written."""


@dataclass
class Account:
    """The rows of one source. Groups are counted apart: one may take several rows and be written several times."""

    source: str
    rows_in: int = 0
    kept: int = 0
    duplicates: int = 0
    not_taken: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # of rejected rows
    first: dict[str, str] = field(default_factory=dict)  # reason -> file:line of its first row
    about_first: dict[str, str] = field(default_factory=dict)  # reason -> what that row's field or exception was
    groups: int = 0  # written, each copy counted
    system_added: int = 0  # groups that got the source's system message
    system_kept: int = 0  # groups that had one of their own
    is_read_to_end: bool = True
    noted: Counter[str] = field(default_factory=Counter)  # kept rows of which something is to be known

    @property
    def rejected(self) -> int:
        return self.reasons.total()

    def reject(self, reason: str, place: str, about: str | None = None) -> None:
        self.reasons[reason] += 1
        if about is not None and reason not in self.first:
            self.about_first[reason] = about
        self.first.setdefault(reason, place)

    def note(self, what: Sequence[str], place: str, num_rows: int) -> None:
        for name in what:
            self.noted[name] += num_rows
            self.first.setdefault(name, place)

    def first_of(self, reason: str) -> str:
        """`file:line`, and what the row's field or exception was."""
        return self.first[reason] + (f" ({self.about_first[reason]})" if reason in self.about_first else "")

    def as_dict(self) -> dict[str, Any]:
        """As the manifest has it. Every row has met exactly one fate."""
        assert self.rows_in == self.kept + self.rejected + self.duplicates + self.not_taken
        return {
            "in": self.rows_in,
            "kept": self.kept,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "not_taken": self.not_taken,
            "reasons": dict(sorted(self.reasons.items())),
            "groups": self.groups,
        }

    def as_source_dict(self) -> dict[str, Any]:
        more = {"system_added": self.system_added, "system_kept": self.system_kept}
        return {
            "source": self.source,
            **self.as_dict(),
            **(more if any(more.values()) else {}),
            **({"noted": dict(sorted(self.noted.items()))} if self.noted else {}),
            **({} if self.is_read_to_end else {"read_to_end": False}),
        }


def total(accounts: Sequence[Account]) -> Account:
    """All sources as one."""
    whole = Account("all")
    for account in accounts:
        for name in ("rows_in", "kept", "duplicates", "not_taken", "groups", "system_added", "system_kept"):
            setattr(whole, name, getattr(whole, name) + getattr(account, name))
        whole.reasons += account.reasons
        whole.noted += account.noted
        new = {reason: about for reason, about in account.about_first.items() if reason not in whole.first}
        whole.about_first |= new
        whole.first = account.first | whole.first
    return whole


def check_rejects(accounts: Sequence[Account], max_rejects: int | str | None, is_finished: bool) -> None:
    """Raise RmcliError with the commonest reason and its first place when more rows are rejected than allowed.

    A share ("5%") is judged from 1,000 rows on and at the end, a number at any time.
    """
    if max_rejects is None:
        return
    whole = total(accounts)
    if isinstance(max_rejects, int):
        is_over = whole.rejected > max_rejects
    else:
        is_judged = is_finished or whole.rows_in >= ROWS_BEFORE_A_SHARE
        is_over = is_judged and whole.rejected > whole.rows_in * float(max_rejects.rstrip("%")) / 100
    if is_over:
        reason, count = whole.reasons.most_common(1)[0]
        raise TooManyRejected(
            f"{whole.rejected:,} of {whole.rows_in:,} rows are rejected, over max_rejects = {max_rejects}: "
            f"{count:,} as {reason}, first {whole.first_of(reason)}",
            f"{hint(reason, whole.first[reason])}; --max-rejects sets how many may be, nothing is written",
        )


def equation(rows: Mapping[str, Any]) -> str:
    """What became of all rows, from a manifest's `rows`."""
    fates = [f"{rows.get(fate, 0):,} {fate.replace('_', ' ')}" for fate in FATES]
    return f"rows: {rows['in']:,} in = {' + '.join(fates)}"


def report_noted(accounts: Sequence[Account], words: Mapping[str, str]) -> None:
    """A warning for each thing noted of kept rows: in words, how many rows and the first one."""
    whole = total(accounts)
    for name, count in sorted(whole.noted.items()):
        output.warn(f"{count:,} of {whole.kept:,} rows: {words[name]}; first {whole.first[name]}")


def report(accounts: Sequence[Account], rejects_file: str) -> None:
    """A table of sources when there are several, and the reasons with their first place."""
    whole = total(accounts)
    if len(accounts) > 1:
        columns = ["source", "in", "kept", "rejected", "duplicates", "not taken", "groups written"]
        lines = [
            [a.source, a.rows_in, a.kept, a.rejected, a.duplicates, a.not_taken, a.groups] for a in (*accounts, whole)
        ]
        output.table(columns, lines, to_answer=False)
    if whole.rejected:
        lines = [
            [a.source, reason, count, a.first_of(reason)]
            for a in accounts
            for reason, count in a.reasons.most_common()
        ]
        output.table(["source", "rejected because", "rows", "first"], lines, to_answer=False)
    if whole.rejected or whole.duplicates:
        output.say(f"each with file, line and text in {rejects_file}")
    for account in accounts:
        if account.system_added or account.system_kept:
            output.say(
                f"system message of {account.source}: put before {account.system_added:,} groups, "
                f"{account.system_kept:,} had one of their own"
            )
        if not account.is_read_to_end:
            output.warn(f"{account.source} was left once max_rows = {account.kept:,} rows were kept")
