"""`rmcli export`: a model folder of a run or a checkpoint, of nothing but the run folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmcli.errors import RmcliError
from rmcli.model.hashes import first_fault, write_hashes
from rmcli.ship import golden, plain
from rmcli.ship.export import Run, export
from support.cli import as_options
from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"  # its run is without the model it began with


@pytest.fixture
def run(tmp_path) -> Path:
    """A run in the working folder, whose data is at hand."""
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    told["data"]["folder"] = str(BEFORE / "data")
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    return Path("run")


def lines_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, golden.FILE).read_text(encoding="utf-8").splitlines()]


def test_the_newest_checkpoint_of_a_run_becomes_a_folder_that_plain_transformers_scores(cli, run):
    result = cli("export", run, "-o", "model")
    assert result.code == 0, result.stderr
    assert result.stdout == "model\n"
    assert "verified: 14 golden scores by plain transformers, largest difference" in result.stderr
    assert result.stderr.endswith("next: rmcli verify model\n")
    assert first_fault(Path("model")) is None
    stored = load_file(next(Path("run/checkpoints/step-3").glob("*.safetensors")))
    shipped = load_file("model/model.safetensors")
    assert shipped.keys() == {
        name.removeprefix("model.") for name in stored if name.startswith("model.") and "rotary" not in name
    }
    assert all(torch.equal(weight, stored[f"model.{name}"]) for name, weight in shipped.items())
    assert Path("model/rmcli.toml").read_text() == Path("run/resolved.toml").read_text()


def test_a_checkpoint_and_its_run_give_the_same_bytes(cli, run):
    for source, out in ((run, "one"), (run / "checkpoints" / "step-3", "other")):
        assert cli("export", source, "-o", out).code == 0
    one, other = ({path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("one", "other"))
    assert one == other


def test_golden_lines_are_what_anybody_gets_of_the_folder(cli, run):
    assert cli("export", run, "-o", "model").code == 0
    network = AutoModelForSequenceClassification.from_pretrained("model").eval()
    tokenizer = AutoTokenizer.from_pretrained("model")
    lines = lines_of("model")
    assert len({line["score"] for line in lines}) == len(lines) == 14
    for line in lines:
        ids = tokenizer.apply_chat_template(line["messages"])["input_ids"]
        assert ids == line["input_ids"] == tokenizer(line["text"])["input_ids"]
        with torch.no_grad():
            assert network(torch.tensor([ids])).logits.item() == pytest.approx(line["score"], abs=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_golden_scores_of_a_rounded_folder_are_those_of_its_weights(cli, run, dtype):
    assert cli("export", run, "-o", "exact").code == 0
    result = cli("export", run, "-o", "rounded", "--dtype", dtype, "--json")
    assert result.code == 0, result.stderr
    told = {"model": "rounded", "checkpoint": "run/checkpoints/step-3", "dtype": dtype, "format": "transformers"}
    assert json.loads(result.stdout) == told
    assert f"rounded to {dtype}: golden scores move by" in result.stderr
    exact, rounded = load_file("exact/model.safetensors"), load_file("rounded/model.safetensors")
    kind = getattr(torch, dtype)
    assert all(torch.equal(rounded[name], weight.to(kind)) for name, weight in exact.items())
    assert json.loads(Path("rounded/config.json").read_text())["dtype"] == dtype
    case = {"dtype": "float32", "attention": "sdpa", "batch": 8, "side": "left", "limit": 1e-4}
    _, answer = plain.measure("rounded", [case])
    assert answer["difference"] < 1e-6
    assert [line["score"] for line in lines_of("exact")] != [line["score"] for line in lines_of("rounded")]


def test_what_a_training_hands_over_is_exported_without_a_copy(cli, run):
    own = Run.of(run, None)
    weights = own.network_of(run / "checkpoints" / "step-3").state_dict()
    network = own.network_with(weights)
    assert {name: weight.data_ptr() for name, weight in network.state_dict().items()} == {
        name: weight.data_ptr() for name, weight in weights.items()
    }


def test_a_weight_that_does_not_fit_is_named_and_what_was_there_stays(cli, run, tmp_path):
    assert cli("export", run, "-o", "model").code == 0
    before = {path.name: path.read_bytes() for path in Path("model").iterdir()}
    own = Run.of(run, None)
    network = own.network_of(run / "checkpoints" / "step-3")
    with torch.no_grad():
        network.model.norm.weight[0] = 1e6
    with pytest.raises(RmcliError, match=r"model.norm.weight does not fit into float16"):
        export(own, network, Path("model"), "float16")
    assert {path.name: path.read_bytes() for path in Path("model").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_a_folder_that_scores_otherwise_never_takes_its_place(cli, run, tmp_path, monkeypatch):
    whole = golden.score
    shifted = lambda *given: [line | {"score": line["score"] + 1e-3} for line in whole(*given)]  # noqa: E731
    monkeypatch.setattr(golden, "score", shifted)
    result = cli("export", run, "-o", "model")
    assert result.code == 1
    assert "error: the exported folder does not score as its checkpoint: a score is off by 0.001, limit 0.0001" in (
        result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_golden_holds_conversations_of_the_run_unless_told_otherwise(cli, run):
    assert cli("export", run, "-o", "own").code == 0
    assert cli("export", run, "-o", "none", "--no-held-out").code == 0
    own, none = lines_of("own"), lines_of("none")
    first = json.loads((BEFORE / "data" / "eval.jsonl").read_text().splitlines()[0])
    assert own[: len(none)] == none
    assert len(own) == len(none) + golden.HELD_OUT
    assert own[len(none)]["messages"] == first["prompt"] + first["chosen"]


def test_conversations_that_others_would_encode_otherwise_are_passed_over(tmp_path):
    talk = {"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}]}
    rows = [
        talk | {"tools": [{}]},
        talk | {"chosen": [{"role": "assistant", "content": "<|im_end|>"}]},
        talk | {"chosen": [{"role": "assistant", "content": "b", "reasoning_content": "c"}]},
        {"prompt": talk["prompt"], "responses": []},
        talk,
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert golden.held_out(tmp_path, ["<|im_end|>"]) == [(*talk["prompt"], *talk["chosen"])]
    assert golden.held_out(tmp_path / "gone", []) == golden.held_out(None, []) == []


@pytest.mark.parametrize(
    ("source", "out", "said"),
    [
        ("gone", "model", "gone: no such folder"),
        ("run/backbone", "model", "run/backbone is neither a run nor a checkpoint"),
        ("shipped", "model", "shipped is a model folder already"),
        ("moved", "model", "moved lies in no run"),
        ("damaged/checkpoints/step-3", "model", "is damaged: checkpoint.json was changed"),
        ("unborn", "model", "unborn has no checkpoint"),
        ("run", "run/checkpoints/mine", "run/checkpoints/mine lies in what the run keeps for itself"),
        ("run", "run/backbone", "run/backbone lies in what the run keeps for itself"),
        ("run", "file", "file is a file"),
        ("run", "shipped", "shipped exists and is left alone"),
    ],
)
def test_what_cannot_be_exported_or_written_is_one_line_before_any_work(cli, run, source, out, said):
    shutil.copytree(BEFORE / "model", "shipped")
    Path("shipped/rmcli.sha256").write_text("")
    shutil.copytree(run / "checkpoints" / "step-3", "moved")
    shutil.copytree(run, "damaged")
    Path("damaged/checkpoints/step-3/checkpoint.json").write_text("{}")
    shutil.copytree(run, "unborn")
    shutil.rmtree("unborn/checkpoints")
    Path("file").write_text("mine")
    result = cli("export", source, "-o", out)
    assert result.code in (1, 2)
    assert "error: " in result.stderr
    assert said in result.stderr
    assert not Path("model").exists()


def test_an_earlier_export_is_replaced_on_demand_and_nothing_else_is(cli, run):
    assert cli("export", run, "-o", "model").code == 0
    Path("model/stale.txt").write_text("of the earlier one")
    write_hashes(Path("model"))
    assert cli("export", run, "-o", "model", "--overwrite").code == 0
    assert not Path("model/stale.txt").exists()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    result = cli("export", run, "-o", "mine", "--overwrite")
    assert "error: mine holds no exported model and is left alone\n" in result.stderr
    assert Path("mine/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_what_two_processes_have_written_is_exported_by_one(cli, run):
    """Weights that are cut over both, in the checkpoint of the last step and in that of the best evaluation."""
    keys = ("train.max_steps=4", "train.eval_steps=2", "train.best=eval_loss", "parallel.data_parallel=shard")
    settings = as_options(*keys)
    line = ["train", "-p", "tiny", "--data", BEFORE / "data", "-o", "two", "--num-processes", "2", *settings]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-m", "rmcli", *line], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("verified: 14 golden scores by plain transformers") == 2
    best = next(Path("two/checkpoints").glob("best-step-*"))
    for source, written in (("two", "two/model"), (best, "two/model-best")):
        assert cli("export", source, "-o", "out", "--overwrite").code == 0
        for path in Path(written).iterdir():
            assert path.read_bytes() == Path("out", path.name).read_bytes(), path
