"""What is read on a terminal fits it: fewer columns and lines broken at words; --wide shows all."""

import pytest
from rich.cells import cell_len

COMMANDS = ("presets", "map-fns", "config", "inspect-token tiny", "config loss")


@pytest.mark.parametrize("command", COMMANDS)
def test_answers_fit_80_and_60_columns(cli, monkeypatch, command):
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = cli(*command.split()).stdout
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = cli(*command.split()).stdout.splitlines()
        toml = ("reward_token = ", "reward_token_id = ")  # to paste
        assert max(cell_len(line) for line in lines if not line.startswith(toml)) <= width
    narrow, everything = " ".join(" ".join(lines).split()), " ".join(whole.split())
    for word in ("llama3-8b", "canonical", "train.lr", "penalty_bound"):
        assert word not in everything or word in narrow, word  # names stay whole


@pytest.mark.parametrize("command", ["presets", "map-fns", "config", "inspect-token tiny"])
def test_wide_shows_every_column_however_narrow(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")
    narrow, wide = cli(*command.split()), cli(*command.split(), "--wide")
    assert "with --wide also: " in narrow.stderr
    hidden = narrow.stderr.split("with --wide also: ")[1].splitlines()[0].split(", ")
    heads = [next(line for line in result.stdout.splitlines() if line.startswith(" ")) for result in (narrow, wide)]
    for column in hidden:
        assert (f" {column} " in f"{heads[0]} ", f" {column} " in f"{heads[1]} ") == (False, True)
    assert "with --wide also" not in wide.stderr


def test_off_a_terminal_nothing_is_folded(cli, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    row = next(line for line in cli("presets").stdout.splitlines() if line.strip().startswith("llama3-8b"))
    assert row.split()[1:4] == ["meta-llama/Meta-Llama-3-8B-Instruct", "128,256", "<|reserved_special_token_0|>"]
