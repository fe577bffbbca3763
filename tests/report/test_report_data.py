"""A run's data in its page, and what goes wrong as the page is made: it costs no run."""

import importlib.util
import json
from pathlib import Path

import pytest

from rmcli.cli.run_report import data_audit, write_at_end
from rmcli.errors import RmcliError
from rmcli.installed import install_command
from rmcli.report.run_folder import collect
from support.places import write_lines
from support.reports import write_run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nor_is_one_of_the_data(with_data, cli):
    files = [Path("data", name) for name in ("manifest.json", "rejects.jsonl", "eval.jsonl", "dataset_dict.json")]
    for path in files:
        if path.name != "manifest.json":
            path.write_text("")
        for command in (("report", "one", "-o", path), ("audit", "data", "--report", path)):
            shown = cli(*command, "--overwrite")
            assert (shown.code, "is the input" in shown.stderr) == (2, True), (command, shown.stderr)


def test_the_data_of_a_run_is_audited_where_it_is_still_the_same(cli, here):
    rows = [{"prompt": f"q {n}", "chosen": "yes " * (1 + n % 3), "rejected": "no"} for n in range(40)]
    write_lines(here / "rows.jsonl", rows)
    assert cli("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "data", "-q").code == 0
    sha256 = json.loads(Path("data/manifest.json").read_text())["manifest_sha256"]
    write_run(here / "one", steps=0, manifest=sha256, data=here / "data")
    assert cli("report", "one").code == 0
    text = Path("one/report.html").read_text()
    assert "The audit of" in text
    assert 'aria-label="histogram: prompt length"' in text
    assert cli("report", "one", "--overwrite", "--no-audit").code == 0
    assert "The audit of" not in Path("one/report.html").read_text()
    write_run(here / "two", steps=0, data=here / "data")
    assert "holds other data now" in cli("report", "two").stderr


@pytest.fixture
def with_data(cli, here):
    """A run folder and the data it was trained on."""
    rows = [{"prompt": f"q {n}", "chosen": "yes " * (1 + n % 3), "rejected": "no"} for n in range(40)]
    write_lines(here / "rows.jsonl", rows)
    assert cli("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "data", "-q").code == 0
    sha256 = json.loads(Path("data/manifest.json").read_text())["manifest_sha256"]
    return write_run(here / "one", steps=0, manifest=sha256, data=here / "data")


@pytest.mark.parametrize(
    "error", [ValueError("two\nlines"), KeyError("splits"), RmcliError("damaged"), MemoryError()]
)
def test_whatever_goes_wrong_in_the_audit_costs_neither_the_run_nor_its_page(with_data, monkeypatch, capsys, error):
    def audit(*_):
        raise error

    monkeypatch.setattr("rmcli.audit.run.run", audit)
    write_at_end(with_data)
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith("the page says nothing of the data: ")
    assert said[-1] == f"report in {with_data}/report.html"
    assert len(said) == 2
    assert "The prepared data was not looked at" in (with_data / "report.html").read_text()


def test_data_that_a_newer_rmcli_prepared_is_said_in_one_line(with_data, monkeypatch, capsys):
    manifest = json.loads(Path("data/manifest.json").read_text())
    manifest["config"]["model"]["from_tomorrow"] = 1
    monkeypatch.setattr("rmcli.packs.manifest.read_manifest", lambda _: manifest)
    assert data_audit(collect(with_data)) is None
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("the page says nothing of the data: ")
    assert "from_tomorrow" in said


def test_whatever_else_goes_wrong_costs_no_run(with_data, monkeypatch, capsys):
    monkeypatch.setattr("rmcli.report.run_folder._text", lambda path: 1 / 0)
    write_at_end(with_data)
    assert capsys.readouterr().err == "no report.html: it cannot be made: division by zero\n"


def test_the_audit_takes_the_tokenizer_that_the_run_keeps_and_never_asks_the_hub(with_data, monkeypatch):
    from huggingface_hub import constants

    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "rmcli.audit.run.run",
        lambda _, model: asked.append((model.pretrained_model_name_or_path, constants.HF_HUB_OFFLINE)),
    )
    data_audit(collect(with_data))
    (with_data / "backbone").mkdir()
    data_audit(collect(with_data))
    assert [Path(name).name for name, _ in asked] == ["tiny", "backbone"]
    assert [is_offline for _, is_offline in asked] == [True, True]
    assert constants.HF_HUB_OFFLINE is False


def test_a_matplotlib_that_cannot_be_imported_is_said_in_one_line(cli, here, monkeypatch, capsys):
    run = write_run(here / "one", steps=0)
    real = importlib.import_module

    def broken(name, *rest):
        if name.startswith("matplotlib"):
            raise AttributeError("_ARRAY_API not found\nA module that was compiled with NumPy 1")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", broken)
    said = "a report draws with matplotlib, which cannot be imported: _ARRAY_API not found A module that was compiled"
    shown = cli("report", "one")
    assert (shown.code, shown.stdout) == (2, "")
    assert said in shown.stderr.splitlines()[0]
    assert shown.stderr.splitlines()[1] == f"hint: install it anew: {install_command('report')}"
    write_at_end(run)
    assert f"no report.html: {said}" in capsys.readouterr().err
