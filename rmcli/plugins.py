"""Names to functions: `module:function`, `file.py:function`, entry points, and the nearest of a misspelt name."""

import difflib
import importlib
import importlib.util
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from importlib.metadata import entry_points as installed_entry_points
from pathlib import Path
from types import TracebackType
from typing import Any

from rmcli.errors import ConfigError


class Importing:
    """A context in which a user's or a package's module runs: whatever it raises becomes ConfigError. Ctrl-C passes.

    `message` says what was imported; the exception and, of a file of its own, the line follow.
    """

    def __init__(self, message: str, hint: str | None = None, file: Path | None = None) -> None:
        self.message, self.hint, self.file = message, hint, file

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return
        lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(self.file)]
        said = f"{type(error).__name__}: {error}".rstrip(": ") + (f" ({self.file}:{lines[-1]})" if lines else "")
        raise ConfigError(f"{self.message}: {said}", self.hint) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest known name, or lists them all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(known)}"


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `module:function` or `path/to/file.py:function` names.

    Raises ConfigError when the module, the file or the function is missing, or is no function.
    """
    module_name, _, function_name = spec.rpartition(":")
    if not module_name or not function_name:
        raise ConfigError(f"map function {spec!r} is not of the form module:function or file.py:function")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise ConfigError(f"map function {spec!r}: no such file: {path}", "give the path from this folder")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        assert module_spec is not None  # a .py file always has a loader
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        with Importing(f"map function {spec!r}: {path} does not import", file=path):
            module_spec.loader.exec_module(module)
    else:
        hint = "for a file, write path/to/file.py:function"
        with Importing(f"map function {spec!r}: cannot import {module_name}", hint):
            module = importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise ConfigError(
            f"map function {spec!r}: {module_name} has no function {function_name!r}",
            did_you_mean(function_name, names),
        )
    return function


def entry_points(group: str) -> list[EntryPoint]:
    """What installed packages offer in this group, by name. Nothing is imported."""
    return sorted(installed_entry_points(group=group), key=lambda point: (point.name, point.value))


def distribution_of(point: EntryPoint) -> str:
    """The package that offers the entry point, with its version."""
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def load_entry_point(point: EntryPoint, what: str) -> Any:
    """The object it names. Raises ConfigError, with the package, when it does not import."""
    message = f"{what} {point.name!r} of {distribution_of(point)}: {point.value} does not load"
    with Importing(message, "mend or uninstall that package"):
        return point.load()
