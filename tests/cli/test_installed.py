"""Hints name an install that works for how rmcli is installed: a clone, a wheel, a repository, an index."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rmcli import installed
from rmcli.installed import install_command
from support.places import REPOSITORY


def install(monkeypatch, tmp_path, recorded: dict | None) -> None:
    """rmcli as if it lay in a site-packages, with what pip records of where it came from."""
    monkeypatch.setattr(installed, "_PACKAGE", tmp_path / "site-packages" / "rmcli")

    class Found:
        def read_text(self, name):
            return json.dumps(recorded) if recorded is not None and name == "direct_url.json" else None

    monkeypatch.setattr(installed.Distribution, "from_name", lambda name: Found())


@pytest.mark.parametrize(
    ("recorded", "what"),
    [
        (None, "rmcli[gguf]"),
        ({"url": "file:///a b/rmcli-0.1.0.whl", "archive_info": {}}, "rmcli[gguf] @ file:///a b/rmcli-0.1.0.whl"),
        (
            {"url": "https://host/rmcli.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "rmcli[gguf] @ git+https://host/rmcli.git@abc",
        ),
    ],
)
def test_an_extra_comes_from_where_rmcli_came_from(monkeypatch, tmp_path, recorded, what):
    install(monkeypatch, tmp_path, recorded)
    assert shlex.split(install_command("gguf"))[-1] == what


def test_in_a_clone_the_clone_is_installed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install_command("gguf"))[-2:] == ["-e", f"{REPOSITORY}[gguf]"]
    monkeypatch.chdir(REPOSITORY)
    assert shlex.split(install_command("gguf", "--no-deps"))[-3:] == ["--no-deps", "-e", ".[gguf]"]


def test_the_environment_that_runs_is_the_one_installed_into(monkeypatch):
    found = installed.importlib.util.find_spec
    assert shlex.split(install_command("gguf"))[:4] == [sys.executable, "-m", "pip", "install"]
    monkeypatch.setattr(installed.importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    assert shlex.split(install_command("gguf"))[:5] == ["uv", "pip", "install", "--python", sys.executable]


def test_every_hint_names_an_extra_that_there_is():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(path.read_text() for path in (REPOSITORY / "rmcli").rglob("*.py"))
    asked = {name for name in extras if f'install_command("{name}"' in text or f"install_command('{name}'" in text}
    assert asked == {"fast", "flash", "fp8", "gguf", "internlm2", "liger", "lora", "qlora", "report", "serve"}
    assert "pip install 'rmcli[" not in text


def test_the_demo_ends_with_the_line_that_puts_rmcli_on_the_path(tmp_path, monkeypatch):
    spec = installed.importlib.util.spec_from_file_location("demo", REPOSITORY / "examples" / "demo.py")
    demo = installed.importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    scripts = tmp_path / "my env" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "rmcli").write_text("#!/bin/sh\necho it runs\n")
    (scripts / "rmcli").chmod(0o755)
    (scripts / "activate").write_text(f'PATH="{scripts}:$PATH"\n')
    monkeypatch.chdir(tmp_path)
    line = demo.path_line(scripts, "/usr/bin:/bin")
    assert line == "source 'my env/bin/activate'"
    (scripts / "activate").unlink()
    other = demo.path_line(scripts, "/usr/bin:/bin")
    assert other == f"export PATH='{scripts}':\"$PATH\""
    ran = subprocess.run(
        ["bash", "-c", f"{other}; rmcli"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert ran.stdout == "it runs\n"
    assert demo.path_line(scripts, f"/bin:{scripts}") is None
    assert Path(demo.scripts_folder(), "python").exists()
