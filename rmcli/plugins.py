"""Names to functions: `module:function` and `file.py:function`, and the nearest name for a misspelt one."""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rmcli.errors import ConfigError


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
        load = module_spec.loader
        try:
            load.exec_module(module)
        except (ImportError, SyntaxError, NameError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"map function {spec!r}: {path} does not import: {error}") from error
    else:
        try:
            module = importlib.import_module(module_name)
        except (ImportError, SyntaxError, NameError, TypeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"map function {spec!r}: cannot import {module_name}: {error}",
                "for a file, write path/to/file.py:function",
            ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise ConfigError(
            f"map function {spec!r}: {module_name} has no function {function_name!r}",
            did_you_mean(function_name, names),
        )
    return function
