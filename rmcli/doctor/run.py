"""All that doctor looks at, in order. What goes wrong while looking is itself a finding."""

from collections.abc import Callable, Iterable

from rmcli.doctor import hub
from rmcli.doctor.finding import Finding
from rmcli.doctor.report import Report, without_names
from rmcli.errors import RmcliError, explained_by

Look = Callable[[], Iterable[Finding]]


def run() -> Report:
    """Raises nothing that a machine or a broken package can bring about."""
    question = hub.Question()  # on its way while packages are imported
    looks: dict[str, Look] = {
        "versions": _versions,
        "devices": _devices,
        "space": _space,
        "extras": _extras,
        "hub": question.look,
    }
    return Report(without_names([finding for topic, look in looks.items() for finding in attempt(topic, look)]))


def attempt(topic: str, look: Look) -> list[Finding]:
    """What was found up to the point where looking failed, and that it failed."""
    found: list[Finding] = []
    try:
        with explained_by(lambda error: RmcliError(f"{type(error).__name__}: {' '.join(str(error).split())}")):
            found.extend(look())
    except RmcliError as error:
        found.append(Finding(topic, topic, "fault", f"could not be looked at: {error.message}"))
    return found


# A file that cannot be imported, as where packaging is missing, is a finding as well.
def _versions() -> Iterable[Finding]:
    from rmcli.doctor import packages

    return packages.look()


def _devices() -> Iterable[Finding]:
    from rmcli.doctor import devices

    return devices.look()


def _space() -> Iterable[Finding]:
    from rmcli.doctor import space

    return space.look()


def _extras() -> Iterable[Finding]:
    from rmcli.doctor import extras

    return extras.look()
