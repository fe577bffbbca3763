"""How rmcli is installed here: what it requires, and the command that installs it or adds an optional package."""

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

_PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Requirements:
    """Packages with their ranges (`torch>=2.11`): those that rmcli needs, and those of each extra."""

    needed: Sequence[str]
    extras: Mapping[str, Sequence[str]]


def requirements() -> Requirements:
    """A clone's are in its pyproject.toml, newer than what was installed; nothing where none are known."""
    file = _PACKAGE.parent / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        return Requirements(project["dependencies"], project["optional-dependencies"])
    try:
        return sorted_by_extra(Distribution.from_name("rmcli").requires or ())
    except PackageNotFoundError:
        return Requirements((), {})


def sorted_by_extra(lines: Iterable[str]) -> Requirements:
    """Lines as an installed package's metadata have them: `gguf>=0.17; extra == 'gguf'`."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        wanted, _, condition = line.partition(";")
        extra = re.search(r"extra *== *['\"]([^'\"]+)", condition)
        (extras.setdefault(extra[1], []) if extra else needed).append(wanted.strip())
    return Requirements(needed, extras)


def install_command(extra: str | None = None, *options: str) -> str:
    """What installs the extra (gguf, report, ...) into the environment that runs rmcli: a clone, a wheel or an index.

    Without an extra: rmcli itself with what it needs.

    uv makes environments without pip, which uv then has to be asked.
    """
    python = sys.executable or "python"
    pip = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is None:
        pip = ["uv", "pip", "install", "--python", python]
    return shlex.join([*pip, *options, *_what_to_install(extra)])


def _what_to_install(extra: str | None) -> list[str]:
    clone, brackets = _PACKAGE.parent, f"[{extra}]" if extra else ""
    if (clone / "pyproject.toml").is_file():
        return ["-e", f"{'.' if clone == Path.cwd() else clone}{brackets}"]
    origin = _origin()
    return [f"rmcli{brackets} @ {origin}" if origin else f"rmcli{brackets}"]


def _origin() -> str | None:
    """The URL of the wheel, folder or repository that the running rmcli was installed from; None for an index."""
    try:
        distribution = Distribution.from_name("rmcli")
    except PackageNotFoundError:
        return None
    recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
    system, commit = (recorded.get("vcs_info", {}).get(key) for key in ("vcs", "commit_id"))
    return recorded.get("url") and (f"{system}+{recorded['url']}@{commit}" if system else recorded["url"])
