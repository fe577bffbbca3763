"""The findings as a person reads them and as a bug report has them: no home folder, no user name."""

import getpass
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.doctor.finding import VERDICTS, Finding, worst


@dataclass(frozen=True)
class Report:
    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        return worst(self.findings)

    def as_dict(self) -> dict[str, Any]:
        """One object; every finding's facts stand in it beside its words."""
        return {"verdict": self.verdict, "findings": [asdict(finding) for finding in self.findings]}

    def show(self) -> None:
        topic = None
        for finding in self.findings:
            if finding.topic != topic:
                topic = finding.topic
                output.answer(topic)
            output.answer(f"  {finding.verdict:<6}{finding.name}: {finding.said}")
            if finding.hint:
                output.answer(f"        hint: {finding.hint}")
        count = {verdict: sum(finding.verdict == verdict for finding in self.findings) for verdict in VERDICTS}
        output.answer(f"verdict: {count['fault']} faults, {count['note']} notes, {count['ok']} ok")


def without_names(findings: Sequence[Finding]) -> list[Finding]:
    """The home folder becomes ~ and a folder named like the user USER, wherever they stand."""
    shorten = _shortener()
    return [
        replace(
            finding,
            said=shorten(finding.said),
            hint=finding.hint and shorten(finding.hint),
            facts={key: shorten(value) if isinstance(value, str) else value for key, value in finding.facts.items()},
        )
        for finding in findings
    ]


def _shortener() -> Callable[[str], str]:
    try:
        home, user = str(Path.home()), getpass.getuser()
    except (RuntimeError, KeyError, OSError):  # a container may run under a number that has no name
        return lambda text: text
    of_home = re.compile(rf"{re.escape(home)}(?=/|\W|$)") if home != "/" else re.compile("(?!)")
    of_user = re.compile(rf"(?<=/){re.escape(user)}(?=/|$|[\s:'\"])")
    return lambda text: of_user.sub("USER", of_home.sub("~", text))
