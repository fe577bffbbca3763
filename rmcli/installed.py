"""How rmcli is installed here: the command that adds an optional package, as it works on this machine."""

import importlib.util
import json
import shlex
import sys
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

_PACKAGE = Path(__file__).parent


def install_command(extra: str, *options: str) -> str:
    """What installs the extra (gguf, report, ...) into the environment that runs rmcli: a clone, a wheel or an index.

    uv makes environments without pip, which uv then has to be asked.
    """
    python = sys.executable or "python"
    pip = [python, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is None:
        pip = ["uv", "pip", "install", "--python", python]
    return shlex.join([*pip, *options, *_what_to_install(extra)])


def _what_to_install(extra: str) -> list[str]:
    clone = _PACKAGE.parent
    if (clone / "pyproject.toml").is_file():
        return ["-e", f"{'.' if clone == Path.cwd() else clone}[{extra}]"]
    origin = _origin()
    return [f"rmcli[{extra}] @ {origin}" if origin else f"rmcli[{extra}]"]


def _origin() -> str | None:
    """The URL of the wheel, folder or repository that the running rmcli was installed from; None for an index."""
    try:
        distribution = Distribution.from_name("rmcli")
    except PackageNotFoundError:
        return None
    recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
    system, commit = (recorded.get("vcs_info", {}).get(key) for key in ("vcs", "commit_id"))
    return recorded.get("url") and (f"{system}+{recorded['url']}@{commit}" if system else recorded["url"])
