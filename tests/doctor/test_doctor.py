"""`rmcli doctor`: each thing it looks at, what makes it a note or a fault, and that it never raises."""

import getpass
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from rmcli.doctor import devices, extras, hub, packages, space
from rmcli.doctor.finding import GIB, Finding, load
from rmcli.doctor.report import Report, without_names
from rmcli.doctor.run import attempt
from rmcli.installed import requirements, sorted_by_extra
from support.places import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def _hub_off(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def names_of(lines: list[str]) -> set[str]:
    return {Requirement(line).name for line in lines}


def by_name(findings) -> dict[str, dict]:
    return {finding["name"]: finding for finding in findings}


def test_it_looks_at_every_package_of_the_project_and_at_the_machine(cli):
    result = cli("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.code, report["verdict"]) == (0, "note"), result.stdout
    found = by_name(report["findings"])
    everything = {"rmcli", "python", "system", "tokenizers", "huggingface-hub", "cpu", "memory", "endpoint", "token"}
    everything |= {"current folder", "runs", "rmcli's cache", "Hub cache"} | names_of(PROJECT["dependencies"])
    for extra, lines in PROJECT["optional-dependencies"].items():
        everything |= names_of(lines) if extra not in extras.FOR_DEVELOPERS else set()
    assert everything - {"cuda"} <= found.keys()
    assert found["torch"]["facts"]["version"].startswith("2.")
    assert found["cpu"]["facts"]["attention"] == ["sdpa"]
    assert found["memory"]["facts"]["free"] > 0


def test_what_is_shown_has_a_line_for_each_and_the_count(cli):
    result = cli("doctor")
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:5] == [
        "versions",
        "devices",
        "space",
        "extras",
        "hub",
    ]
    assert any(line.startswith("  ok    torch: 2.") for line in lines)
    assert lines[-1].startswith("verdict: 0 faults, ")
    assert result.stderr.endswith("next: rmcli doctor --json\n")


def test_every_extra_says_what_it_brings():
    assert extras.BRINGS.keys() == PROJECT["optional-dependencies"].keys() - set(extras.FOR_DEVELOPERS)


BREAKS = {
    "torch": "raise RuntimeError('libcudart is not here')",
    "datasets": "raise ImportError('wrong pyarrow')",
    "gguf": "raise SystemExit('no licence')",
    "matplotlib": "print('hello'); raise ValueError",
    "packaging": "raise AttributeError('old')",
}


@pytest.mark.parametrize("broken", [("torch", "datasets", "gguf", "matplotlib"), ("packaging",)])
def test_packages_that_break_at_import_are_faults_and_nothing_raises(tmp_path, broken):
    """In a process of its own, for torch cannot be unloaded. `--json` stays one object, whatever a package prints."""
    for name in broken:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(BREAKS[name])
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    ran = subprocess.run(
        [sys.executable, "-m", "rmcli", "doctor", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    report = json.loads(ran.stdout)
    faults = {finding["name"]: finding["said"] for finding in report["findings"] if finding["verdict"] == "fault"}
    if broken == ("packaging",):
        assert faults["versions"] == faults["extras"] == "could not be looked at: AttributeError: old"
        return
    assert "it cannot be imported: RuntimeError: libcudart is not here" in faults["torch"]
    assert faults["devices"] == "not known without torch: RuntimeError: libcudart is not here"
    assert "it cannot be imported: ImportError: wrong pyarrow" in faults["datasets"]
    assert "it cannot be imported: it ends the program (no licence)" in faults["gguf"]
    assert "it cannot be imported: ValueError: " in faults["matplotlib"]
    assert by_name(report["findings"])["memory"]["verdict"] != "fault"  # what is whole is still looked at


def test_a_look_that_fails_keeps_what_it_found():
    def look():
        yield Finding("space", "disk", "ok", "room")
        raise OSError("the disk is gone")

    assert [(one.verdict, one.said) for one in attempt("space", look)] == [
        ("ok", "room"),
        ("fault", "could not be looked at: OSError: the disk is gone"),
    ]


@pytest.mark.parametrize(
    ("line", "there", "said"),
    [
        ("transformers>=5.9,<6", "5.8.3", "rmcli refuses 5.8.*, its classification heads are NaN in bfloat16"),
        ("transformers>=5,<6", "5.8.0", "rmcli refuses 5.8.*"),
        ("transformers>=5.9,<6", "6.0.0", "6.0.0: rmcli takes <6,>=5.9"),
        ("torch>=2.11", "2.10.0+cu128", "2.10.0+cu128: rmcli takes >=2.11"),
        ("torch>=2.11", "unknown", "no version that can be compared"),
    ],
)
def test_a_release_out_of_range_is_refused(line, there, said):
    assert said in str(packages.why_refused(Requirement(line), there))


@pytest.mark.parametrize(
    ("line", "there"),
    [("transformers>=5.9,<6", "5.9.0"), ("torch>=2.11", "2.13.0+cpu"), ("torch>=2.11", "2.14.0rc1")],
)
def test_a_release_in_range_is_taken(line, there):
    assert packages.why_refused(Requirement(line), there) is None


def test_a_missing_package_is_a_fault_where_it_is_needed_and_a_note_where_it_is_optional(monkeypatch):
    needed = packages.of_package("versions", Requirement("no-such-package>=1"), "install it")
    assert (needed.verdict, needed.said, needed.hint) == ("fault", "not installed", "install it")
    (flash,) = (one for one in extras.look() if one.name == "flash-attn")
    assert (flash.verdict, flash.said) == ("note", "not installed; model.attention=flash on CUDA")
    assert "--no-build-isolation" in str(flash.hint)
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.1")
    monkeypatch.setattr(extras, "installed_version", lambda name: "0.1")
    (gguf,) = (one for one in extras.look() if one.name == "gguf")
    assert (gguf.verdict, gguf.said) == ("fault", "0.1: rmcli takes >=0.17: loads .gguf files")


def test_a_newer_python_is_a_note(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 1))
    (python,) = (one for one in packages.look() if one.name == "python")
    assert (python.verdict, python.said) == ("note", "3.14.1, newer than 3.13: not tested")


def test_requirements_are_read_from_a_clone_and_from_metadata():
    assert requirements().needed == PROJECT["dependencies"]
    assert requirements().extras == PROJECT["optional-dependencies"]
    lines = ["torch>=2.11", "gguf>=0.17; extra == 'gguf'", 'ruff>=0.12 ; extra == "lint"', "pyright;extra=='lint'"]
    read = sorted_by_extra(lines)
    assert read.needed == ["torch>=2.11"]
    assert read.extras == {"gguf": ["gguf>=0.17"], "lint": ["ruff>=0.12", "pyright"]}


# --- devices ---


class FakeCuda:
    """torch with one GPU, as far as doctor asks."""

    class Known:
        name, major, minor = "NVIDIA H100", 9, 0

    def __init__(self, bf16: bool = True, computes: bool = True) -> None:
        import torch

        self.cuda, self.device, self.float32, self._real, self._computes = (
            self,
            torch.device,
            torch.float32,
            torch,
            computes,
        )
        self.is_bf16_supported = lambda including_emulation: bf16

    def get_device_properties(self, index):
        return self.Known

    def mem_get_info(self, device):
        return 60 * GIB, 80 * GIB

    def ones(self, *sizes, device, dtype):
        if not self._computes:
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return self._real.ones(*sizes, dtype=dtype)


@pytest.mark.parametrize(
    ("fake", "verdict", "said"),
    [
        (FakeCuda(), "ok", "NVIDIA H100, 60.0 of 80.0 GiB free, bfloat16; attention: varlen, sdpa, flex"),
        (FakeCuda(bf16=False), "note", "60.0 of 80.0 GiB free, no bfloat16; attention: sdpa, flex"),
        (FakeCuda(computes=False), "fault", "does not compute: CUDA error: no kernel image is available"),
    ],
)
def test_a_gpu(fake, verdict, said, monkeypatch):
    hopper = SimpleNamespace(major=9, minor=0)  # whose kernels of FlashAttention 3 are not installed
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: hopper)
    found = devices._gpu(fake, 0)
    assert (found.name, found.verdict) == ("cuda:0", verdict)
    assert found.said.endswith(said)


def test_a_driver_that_torch_does_not_see_is_a_fault(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [one.name for one in devices.look()] == ["cpu"] or devices._DRIVER.exists()
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    cpu, cuda = devices.look()
    assert (cpu.verdict, cuda.verdict) == ("ok", "fault")
    assert "sees no GPU: runs go to the CPU" in cuda.said


# --- room ---


@pytest.mark.parametrize(
    ("free", "verdict"), [(GIB - 1, "fault"), (GIB, "note"), (20 * GIB - 1, "note"), (20 * GIB, "ok")]
)
def test_little_room_is_a_note_and_none_a_fault(free, verdict, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free, "total": 100 * GIB}))
    found = space.folder("runs", tmp_path / "not" / "there", "elsewhere")
    assert found.verdict == verdict
    assert found.said == f"{free / GIB:.1f} of 100.0 GiB free at {tmp_path}/not/there (not there yet)"


def test_a_folder_that_cannot_be_written_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = space.folder("runs", tmp_path, "elsewhere")
    assert (found.verdict, found.said.endswith("which cannot be written")) == ("note", True)


def test_little_memory_is_a_note(monkeypatch):
    monkeypatch.setattr("rmcli.model.limits.host_memory", lambda: GIB)
    assert (space._memory().verdict, space._memory().said[:7]) == ("note", "1.0 of ")


# --- the Hub ---


@pytest.fixture
def hub_at(monkeypatch):
    """`hub_at(address)` asks there; returns the two findings."""

    def ask(endpoint: str) -> list[Finding]:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        return list(hub.Question().look())

    return ask


def test_off_line_is_respected():
    access, _ = hub.Question().look()
    assert (access.verdict, access.said) == ("note", "https://huggingface.co is not asked: HF_HUB_OFFLINE is set")


def test_a_hub_that_answers(hub_at, hub_server):
    access, _ = hub_at(hub_server.url)
    assert (access.verdict, access.facts["reached"]) == ("ok", True)
    assert access.said.startswith(f"{hub_server.url} answers (HTTP ")


def test_a_hub_that_is_not_there_or_never_answers_is_a_note(hub_at, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused, _ = hub_at(address)
        assert (refused.verdict, refused.facts["reached"]) == ("note", False)
        silent.listen()
        began = time.monotonic()
        waited, _ = hub_at(address)
        assert (waited.verdict, time.monotonic() - began < 2) == ("note", True)


def test_no_password_and_no_token_is_told(hub_at, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    access, token = hub_at("http://someone:secret@127.0.0.1:9")
    assert (token.verdict, token.said, token.facts) == ("ok", "there", {"token": True})
    told = str(access) + str(token)
    assert "127.0.0.1:9" in told
    assert [word for word in ("someone", "secret", "abcdef") if word in told] == []


# --- the report ---


def test_neither_home_nor_user_is_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    raw = Finding(
        "space",
        "runs",
        "note",
        "free at /home/jane/work; lost /scratch/jane/x, not /home/janet",
        "/home/jane/venv/bin/python -m pip",
        {"path": "/home/jane/runs", "free": 3},
    )
    (clean,) = without_names([raw])
    assert clean.said == "free at ~/work; lost /scratch/USER/x, not /home/janet"
    assert clean.hint == "~/venv/bin/python -m pip"
    assert clean.facts == {"path": "~/runs", "free": 3}


def test_a_user_without_a_name_is_no_trouble(monkeypatch):
    def nameless():
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    finding = Finding("space", "runs", "ok", "x")
    assert without_names([finding]) == [finding]


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("note", 0), ("fault", 1)])
def test_a_fault_is_exit_code_1(cli, monkeypatch, verdict, code):
    report = Report([Finding("versions", "x", "ok", "y"), Finding("versions", "x", verdict, "y", "z")])
    monkeypatch.setattr("rmcli.doctor.run.run", lambda: report)
    assert cli("doctor").code == code
    result = cli("doctor", "--json")
    assert (result.code, json.loads(result.stdout)["verdict"]) == (code, verdict)


def test_load_is_quiet_and_tells_the_class(tmp_path, monkeypatch, capfd):
    (tmp_path / "loud_and_broken.py").write_text("import warnings; print('hi'); warnings.warn('x'); {}['key']")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("loud_and_broken") == (None, "KeyError: 'key'")
    assert load("json")[1] is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_it_is_fast():
    """The second of two runs, with torch in the page cache. Measured 1.7 s; a busy machine gets the rest."""
    command = [sys.executable, "-m", "rmcli", "doctor", "--json"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, capture_output=True, env=environment, cwd=Path.home())
    began = time.monotonic()
    subprocess.run(command, capture_output=True, env=environment, cwd=Path.home())
    assert time.monotonic() - began < 5
