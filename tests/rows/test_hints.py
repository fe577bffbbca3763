"""What is said where no row can be kept: by the reason, and by what the file really is."""

import json

import pytest

from rmcli.rows.hints import hint
from support.cli import run_cli

USER, REPLY = {"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "groß"}
ROWS = [{"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": f"klein {n}"}]} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
FILES = {
    "latin1.jsonl": (LINES.encode("latin-1"), "not UTF-8 but perhaps Latin-1"),
    "utf16.jsonl": (LINES.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    "utf16le.csv": ("prompt,chosen,rejected\na,b,c\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    "cr.jsonl": (LINES.replace("\n", "\r").encode(), "lines end in CR alone"),
    "array.jsonl": (json.dumps(ROWS).encode(), "call it .json"),
    "array_indented.jsonl": (json.dumps(ROWS, indent=1).encode(), "call it .json"),
    "pretty.jsonl": (json.dumps(ROWS[0], indent=1).encode(), "jq -c . IN"),
    "pretty.json": (json.dumps(ROWS[0], indent=1).encode(), "jq -c . IN"),
    "data.json": (json.dumps({"version": 1.5, "data": ROWS}).encode(), "jq -c '.data[]' IN"),
    "data_pretty.json": (json.dumps({"data": ROWS}, indent=1).encode(), "jq -c '.data[]' IN"),
    "packed.jsonl": (b"\x1f\x8b\x08rest", "add .gz"),
    "book.csv": (b"PK\x03\x04rest", "save the sheet as CSV"),
    "lfs.parquet.jsonl": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "page.json": (b"<!DOCTYPE html>\n<html>", "download the file itself"),
}


@pytest.mark.parametrize("map_fn", ["canonical", "auto"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_gets_its_own_hint(tmp_path, monkeypatch, name, map_fn):
    monkeypatch.chdir(tmp_path)
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    result = run_cli("prepare", name, "--map-fn", map_fn, "-p", "tiny", "-o", "out", "--no-audit")
    assert result.code in (1, 2)
    hints = [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1
    assert expected in hints[0]


def row(**changes: object) -> dict[str, object]:
    return {"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": "klein"}], **changes}


@pytest.mark.parametrize(
    ("only", "options", "expected"),
    [
        (row(prompt=[{"role": "developer", "content": "x"}, USER]), (), "not developer; a developer's message is a"),
        (row(label="chosen"), (), "label is a number from 0 to 1"),
        (row(chosen=[{**REPLY, "content": "word " * 300}]), ("-s", "data.max_length=64"), "raise data.max_length"),
        (row(), ("--decontaminate", "a.jsonl"), "is it the training data itself"),
        (row(), ("--chat-template", "no.jinja"), "it says 'turns must alternate'; the chat template refuses"),
        (row(rejected=[REPLY]), (), "does the map function read one column twice"),
        ({"question": "q"}, (), "does --map-fn fit the data"),
    ],
)
def test_where_every_row_is_rejected_the_hint_fits_the_reason(tmp_path, monkeypatch, only, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps(only) + "\n")
    (tmp_path / "no.jinja").write_text("{{ raise_exception('turns must alternate') }}")
    arguments = ("--map-fn", "canonical", "-p", "tiny", "-o", "out", "--no-audit", *options)
    for limit in ((), ("--max-rejects", "0")):
        result = run_cli("prepare", "a.jsonl", *arguments, *limit)
        assert result.code == 1
        said = result.stderr.split("hint: ")[1]
        assert (expected.split("; ")[-1] if limit else expected) in said
    assert run_cli("train", "-p", "tiny", "--data", "a.jsonl").stderr.splitlines()[-2:] == [
        "error: a.jsonl is a file, not a prepared folder",
        "hint: prepare it first: rmcli prepare a.jsonl --map-fn auto -o DIR, then --data DIR",
    ]


def test_a_place_that_is_no_file_has_a_hint_too():
    assert hint("unknown_role", "-:3").startswith("roles are system, user, assistant and tool: rename")
    assert hint("bad_json", "org/name:3").startswith("each line must be one JSON object")
    assert hint("a reason of my own", "-:3").startswith("does --map-fn fit")
