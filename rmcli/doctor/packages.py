"""The packages that rmcli needs: their versions against what it requires, and whether they can be imported."""

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from rmcli import __version__
from rmcli.doctor.finding import Finding, load
from rmcli.installed import install_command, requirements

TOPIC = "versions"
NEWEST_PYTHON = (3, 13)  # that the tests run on
# Releases that the ranges leave out for a reason of their own.
REFUSED = {"transformers": ("5.8.*", "its classification heads are NaN in bfloat16")}
WITH_THEM = ("huggingface-hub", "tokenizers")  # come with transformers, in the range that it wants
_MODULES = {"protobuf": "google.protobuf"}


def look() -> Iterator[Finding]:
    yield Finding(TOPIC, "rmcli", "ok", __version__, facts={"version": __version__})
    system = platform.platform()
    yield Finding(TOPIC, "system", "ok", system, facts={"system": system})
    yield _python()
    for line in (*requirements().needed, *WITH_THEM):
        yield of_package(TOPIC, Requirement(line), install_command())


def _python() -> Finding:
    here = ".".join(map(str, sys.version_info[:3]))
    newer = sys.version_info[:2] > NEWEST_PYTHON
    if not newer:
        return Finding(TOPIC, "python", "ok", here, facts={"version": here})
    newest = ".".join(map(str, NEWEST_PYTHON))
    said, hint = f"{here}, newer than {newest}: not tested", f"use Python 3.11 to {newest}"
    return Finding(TOPIC, "python", "note", said, hint, {"version": here})


def of_package(topic: str, requirement: Requirement, hint: str) -> Finding:
    """A fault where the package is missing, outside of its range or cannot be imported."""
    there = installed_version(requirement.name)
    if there is None:
        return Finding(topic, requirement.name, "fault", "not installed", hint, {"version": None})
    wrong = why_refused(requirement, there)
    _, broken = load(_MODULES.get(requirement.name, requirement.name.replace("-", "_")))
    if broken is not None:
        wrong = f"{wrong or there}; it cannot be imported: {broken}"
    facts = {"version": there, "wanted": str(requirement.specifier)}
    return Finding(
        topic, requirement.name, "fault" if wrong else "ok", wrong or there, hint if wrong else None, facts
    )


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def why_refused(requirement: Requirement, there: str) -> str | None:
    """Why this release of a package will not do; None where it will."""
    try:
        release = Version(there)
    except InvalidVersion:
        return f"{there} is no version that can be compared"
    releases, reason = REFUSED.get(requirement.name, ("", ""))
    if releases and Requirement(f"{requirement.name}=={releases}").specifier.contains(release, prereleases=True):
        return f"{there}: rmcli refuses {releases}, {reason}; it takes {requirement.specifier}"
    if not requirement.specifier.contains(release, prereleases=True):
        return f"{there}: rmcli takes {requirement.specifier}"
    return None
