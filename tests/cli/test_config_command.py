"""`rmcli config`, `rmcli presets NAME`, help and completion: the keys and commands from the command line."""

import json
import subprocess
import sys
import tomllib

import pytest

from rmcli.cli.app import EXAMPLES
from rmcli.config.keys import every_key
from rmcli.config.resolve import resolve


def test_config_lists_every_key_with_its_value(cli):
    lines = cli("config", "-p", "tiny").stdout.splitlines()
    for key in every_key():
        assert sum(line.split()[:1] == [key.name] for line in lines) == 1, key.name
    (row,) = [line.split() for line in lines if line.strip().startswith("train.pairs_per_step")]
    assert "64" in row
    listed = json.loads(cli("config", "--json", "-q").stdout)
    assert {one["name"] for one in listed} == {key.name for key in every_key()}


@pytest.mark.parametrize("name", ["train.lr", "lr", "learning_rate"])
def test_config_explains_a_key_by_any_of_its_names(cli, name):
    assert cli("config", name, "-p", "tiny", "-s", "train.lr=0.5").stdout.splitlines() == [
        "train.lr",
        "  type     number",
        "  range    above 0",
        "  default  2e-05",
        "  value    0.5 (--set train.lr)",
        "  meaning  peak learning rate",
    ]


def test_config_finds_sections_shared_names_and_words(cli):
    assert cli("config", "parallel").stdout.startswith("parallel.data_parallel\n")
    assert [line for line in cli("config", "seed").stdout.splitlines() if line and line[0] != " "] == [
        "data.seed",
        "train.seed",
    ]
    assert "loss.penalty_bound" in cli("config", "log barrier").stdout
    choices = cli("config", "loss_type").stdout
    assert '"ranking", "focal", "margin", "ties", "plackett_luce"' in choices
    assert cli("config", "lora_rank").stdout.startswith("lora.r\n")
    missing = cli("config", "push_to_hub")
    assert (missing.code, "uploading a model is not built yet" in missing.stderr) == (2, True)
    assert cli("config", "xyzzy").code == 2


def test_unset_keys_are_comments_and_the_toml_loads_back_equal(cli, tmp_path):
    shown = cli("presets", "tiny").stdout
    assert shown == cli("presets", "show", "tiny").stdout
    assert "# head_lr is not set" in shown
    for key in every_key():
        assert key.name.partition(".")[2] in shown
    (tmp_path / "tiny.toml").write_text(shown)
    assert resolve(None, [tmp_path / "tiny.toml"]).config == resolve("tiny").config
    assert tomllib.loads(shown)["name"] == "tiny"


def test_an_unknown_preset_is_guessed(cli):
    result = cli("presets", "tinny")
    assert (result.code, "did you mean tiny?" in result.stderr) == (2, True)


def test_help_has_a_short_name_and_examples_that_parse(cli):
    for command, examples in EXAMPLES.items():
        shown = cli(command, "-h")
        assert (shown.code, shown.stdout) == (0, cli(command, "--help").stdout)
        for line in examples:
            assert line in shown.stdout
            program, name, *rest = line.split(" < ")[0].split()
            assert (program, name) == ("rmcli", command)
            options = [word for word in rest if word.startswith("-") and word != "-"]
            assert all(option in shown.stdout for option in options), line


def test_completion_is_typers_own(cli, monkeypatch):
    assert "--install-completion" in cli("--help").stdout
    code = "from rmcli.cli.app import app; app(prog_name='rmcli')"
    environment = {"_RMCLI_COMPLETE": "complete_bash", "COMP_WORDS": "rmcli in", "COMP_CWORD": "1", "PATH": "/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "inspect-token"


def test_help_costs_little():
    code = "import sys, time; sys.argv = ['rmcli', '--help']; from rmcli.__main__ import main\n"
    code += "try: main()\nexcept SystemExit: print('cpu', time.process_time(), file=sys.stderr)"
    spent = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.split()[-1])
        for _ in range(3)
    )
    assert spent < 0.3
