"""What the pages tell users to type runs as it stands."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from support.places import REPOSITORY, write_lines

PAGE = (REPOSITORY / "docs" / "quickstart.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def files(cli, tmp_path, monkeypatch):
    """The files of the page with more rows of their kind, and a Hub with the set that it names."""
    (table,) = [text for kind, text in BLOCKS if kind == "csv"]
    rows = list(csv.DictReader(table.splitlines()))
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "prompt": f"{row['prompt']} {n}"} for n in range(30) for row in rows)
    support, conversation = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    write_lines(
        tmp_path / "support.jsonl", [{**support, "question": f"{support['question']} {n}"} for n in range(60)]
    )
    write_lines(tmp_path / "conversations.jsonl", [conversation] * 3)
    (function,) = [text for kind, text in BLOCKS if kind == "python"]
    (tmp_path / "my_map.py").write_text(function)

    sides = ("chosen", "rejected")

    def whole(number, reply):
        return [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": reply}]

    def load_dataset(path, *arguments, **options):
        from datasets import Dataset

        assert path == "argilla/ultrafeedback-binarized-preferences-cleaned"
        return Dataset.from_list([{"prompt": f"q {n}", **{s: whole(n, s) for s in sides}} for n in range(60)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return tmp_path


@pytest.mark.slow
def test_every_line_of_the_quick_start_runs(cli, files):
    lines = [line for kind, text in BLOCKS if kind == "" for line in text.splitlines()]
    assert len(lines) == 10
    for line in lines:
        program, *arguments = shlex.split(line)
        result = cli(*arguments)
        assert (program, result.code) == ("rmcli", 0), (line, result.stderr)
    scored = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert len(scored) == 3
    assert all(line.keys() == {"score"} for line in scored)
    for name in ("reviews", "ultrafeedback"):
        pairs = [json.loads(line) for line in Path(f"{name}-scores.jsonl").read_text().splitlines()]
        assert pairs
        assert all(pair.keys() == {"chosen_score", "rejected_score", "margin"} for pair in pairs)


def test_the_readmes_snippets_give_the_score_that_rmcli_gives(cli, tiny_run, tmp_path, capsys):
    snippets = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    shutil.copytree(tiny_run.model, tmp_path / "runs" / "smollm2-135m-1" / "model")
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    printed = [float(line) for line in capsys.readouterr().out.split()]
    line = json.dumps({"messages": names["messages"]})
    ours = json.loads(cli("score", tiny_run.model, stdin=line).stdout)["score"]
    assert printed == pytest.approx([ours, ours], abs=1e-5)
    assert len(names["scores"]) == 2
    assert abs(ours) > 0.01
