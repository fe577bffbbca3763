"""`rmcli verify`: each trap of a shipped folder fails, by the case that finds it."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmcli.model.hashes import write_hashes
from rmcli.ship import limits, plain, verify
from rmcli.ship.export import Run, export
from support.cli import run_cli
from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"
LINE = {"messages": [], "text": "", "input_ids": [], "score": 3.0}
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Of weights that are large enough for each of them to be felt in the scores."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    run = Run.of(BEFORE / "run", None)
    network = run.network_of(BEFORE / "run" / "checkpoints" / "step-3")
    with torch.no_grad():
        for weight in network.model.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)
    export(run, network, folder)
    return folder


@pytest.fixture
def model(exported, tmp_path) -> Path:
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def in_process(monkeypatch):
    """The cases are run here: a fresh process takes seconds."""

    def answers(folder, cases, by):
        assert by == "transformers"
        cases = list(cases)
        yield from zip([None, *cases], plain.measure(str(folder), cases), strict=False)

    monkeypatch.setattr(verify, "answers", answers)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def values(name: str, **changes: object) -> Change:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def template(end: str) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text() + end)

    return apply


def adds_bos(folder: Path) -> None:
    """As Llama's and Gemma's tokenizers do, whose templates write it, too."""
    special = {"id": "<|im_start|>", "ids": [2], "tokens": ["<|im_start|>"]}
    parts = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": parts,
        "special_tokens": {special["id"]: special},
    }
    values("tokenizer.json", post_processor=processor)(folder)


def golden_score(folder: Path) -> None:
    path = folder / "golden.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    path.write_text("\n".join([json.dumps(line | {"score": line["score"] + 2e-4}), *others]) + "\n")


def renamed_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["reward_head.weight"] = tensors.pop("score.weight")


def flipped(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"][0].neg_()


TRAPS = {
    "flipped weights": (weights(flipped), "float32 eager, batch 1, left: another score, off by"),
    "head under another name": (weights(renamed_head), "score.weight is missing in the weights: drawn at random"),
    "score bias": (
        weights(lambda tensors: tensors.update({"score.bias": torch.ones(1)})),
        "score.bias is unexpected in the weights: not used",
    ),
    "NaN head": (weights(lambda tensors: tensors["score.weight"].fill_(float("nan"))), "a score is not finite"),
    "edited template": (template(" "), "tokenizer: golden.jsonl, line 1: the chat template writes another text"),
    "template that prints eos": (template("{{ eos_token }}"), "the chat template writes another text"),
    "BOS twice": (adds_bos, "tokenizer: golden.jsonl, line 1: the text gives other ids (add_special_tokens=True)"),
    "right truncation": (
        values("tokenizer_config.json", truncation_side="right"),
        "tokenizer: the tokenizer cuts long texts on the right: the token that is scored would go",
    ),
    "tokenizer without pad": (values("tokenizer_config.json", pad_token=None), "the tokenizer has no pad token"),
    "tokenizer pads with the reward token": (
        values("tokenizer_config.json", pad_token="<|reserved_special_token_0|>"),
        "tokenizer: the tokenizer pads with 4, and config.json says 1",
    ),
    "pad is the reward token": (
        values("config.json", pad_token_id=4),
        "config.json: pad_token_id is the reward token (4)",
    ),
    "no pad": (values("config.json", pad_token_id=None), "config.json: no pad_token_id"),
    "two labels": (values("config.json", id2label={"0": "a", "1": "b"}), "config.json: 2 labels in id2label"),
    "sigmoid": (values("config.json", problem_type=None), "config.json: problem_type is None"),
    "another rope": (
        values("config.json", rope_parameters={"rope_type": "default", "rope_theta": 100.0}, rope_theta=100.0),
        "another score, off by",
    ),
    "another golden score": (
        golden_score,
        "float32 eager, batch 1, left: another score, off by 0.0002 (limit",
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_fails_even_where_the_hashes_are_of_the_damaged_files(cli, model, in_process, name):
    change, said = TRAPS[name]
    change(model)
    write_hashes(model)
    result = cli("verify", "model")
    assert result.code == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: model: ")
    assert said in error
    assert "hf upload" not in result.stdout + result.stderr


@pytest.mark.parametrize("name", ["flipped weights", "edited template"])
def test_a_changed_file_fails_by_its_hash_before_anything_is_loaded(cli, model, name, monkeypatch):
    TRAPS[name][0](model)
    monkeypatch.setattr(verify, "answers", None)
    result = cli("verify", "model", "--json")
    assert result.code == 1
    told = json.loads(result.stdout)
    assert (told["ok"], told["scored_by"], [check["case"] for check in told["checks"]]) == (
        False,
        "nothing",
        ["files", "config.json"],
    )
    assert "error: model: files: " in result.stderr
    assert "was changed" in result.stderr


def test_the_whole_grid_in_a_fresh_process_ends_with_the_line_to_upload(cli, model):
    run_cli("export", BEFORE / "run", "-o", "rounded", "--dtype", "bfloat16")
    result = cli("verify", "rounded", "--json")
    assert result.code == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "next: hf upload YOUR-NAME/rounded rounded"
    told = json.loads(result.stdout)
    assert told["ok"] is True
    assert told["scored_by"] == "transformers"
    cases = [check["case"] for check in told["checks"]]
    assert cases[:3] == ["files", "config.json", "tokenizer"]
    assert len(set(cases)) == len(cases) == 3 + 2 * 2 * 2 * 2
    by_dtype = {
        dtype: [c for c in told["checks"] if c["case"].startswith(dtype)] for dtype in ("float32", "bfloat16")
    }
    assert all(check["difference"] < 1e-6 for check in by_dtype["float32"])
    assert {check["limit"] for check in by_dtype["float32"]} == {1e-4}
    assert any(check["difference"] > 1e-6 for check in by_dtype["bfloat16"])
    assert {check["limit"] for check in by_dtype["bfloat16"]} == {0.125}


@pytest.mark.slow
def test_a_process_that_dies_is_the_fault_of_the_case_it_was_at(cli, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 64}))
    write_hashes(model)
    result = cli("verify", "model")
    assert result.code == 1
    assert "error: model: float32 eager, batch 1, left: " in result.stderr
    assert "Traceback" not in result.stderr


def test_what_scores_in_the_fresh_process_imports_torch_transformers_and_peft_alone():
    tree = ast.parse(Path(plain.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    standard = {"json", "sys", "tomllib", "collections.abc", "itertools", "pathlib", "typing"}
    assert names == standard | {"torch", "transformers", "peft"}


def test_a_large_model_is_scored_once_for_each_side_in_the_type_it_ships_in():
    large = list(verify.cases_of("bfloat16", limits.WHOLE_GRID + 1, [LINE]))
    assert [(case["dtype"], case["batch"], case["side"]) for case in large] == [
        ("bfloat16", 8, "left"),
        ("bfloat16", 8, "right"),
    ]
    assert len(list(verify.cases_of("float32", limits.WHOLE_GRID, [LINE]))) == 8


def test_a_folder_without_golden_scores_is_one_line(cli):
    shutil.copytree(BEFORE / "model", "old")
    result = cli("verify", "old")
    assert result.code == 1
    assert "error: old has no golden.jsonl: there is nothing to hold its scores against\n" in result.stderr
    Path("old/golden.jsonl").write_text("{}\n")
    assert "error: old/golden.jsonl cannot be read: each line needs messages, text" in cli("verify", "old").stderr


def test_positions_that_are_counted_from_the_padding_on_are_a_note():
    """Only where other positions mend it: a difference on the left is a fault like any other."""
    case = {"dtype": "float32", "attention": "eager", "batch": 8, "side": "left", "limit": 3e-4}
    told = verify.judged(case, {"difference": 0.5, "with_positions": 1e-6})
    assert told.fault is None
    assert told.verdict == "the architecture counts padding on the left: pad on the right"
    assert verify.judged(case, {"difference": 0.5, "with_positions": 0.4}).fault == "another score"
    assert verify.judged(case, {"difference": 0.5}).fault == "another score"
    assert verify.judged(case, {"difference": 0.5}, has_state=True).fault is None
    assert verify.judged(case | {"side": "right"}, {"difference": 0.5}, has_state=True).fault == "another score"
    assert verify.judged(case, {"difference": 2.9e-4}).verdict == "ok"
    assert verify.judged(case, {"fault": ""}).verdict == "the architecture does not take eager"


def test_limits_are_of_the_size_of_the_scores():
    assert limits.limit("float32", [LINE | {"score": 0.1}]) == 1e-4
    assert limits.limit("float32", [LINE, LINE | {"score": -5.0}]) == 5e-4
    assert limits.limit("bfloat16", [LINE | {"score": 0.1}]) == 0.125
    assert limits.limit("float16", [LINE | {"score": 2.0}]) == 2 * 16 * 2**-10
