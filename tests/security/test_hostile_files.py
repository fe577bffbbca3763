"""Files that a model folder or a run brings: what is in them is refused in one line, and leads to no other file."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from safetensors import safe_open

from rmcli.backbones.internlm2.weights import stored_tensors
from rmcli.backbones.lineage import lineage
from rmcli.errors import RmcliError
from rmcli.ship import plain
from support.cli import run_cli
from support.hostile import BEFORE, ROWS, change_json, in_one_line, marker, sealed

DEEP = "[" * 100_000
SERVE = ("serve", "model", "--port", "0")


@pytest.fixture(autouse=True)
def nothing_is_served(monkeypatch):
    def serves(*_):
        raise AssertionError("it is served")

    monkeypatch.setattr("rmcli.serve.run.Server.run_until_drained", serves)


def header(text: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + b"\0" * 8


HEADERS = {
    "past the file": header("{}", 2**62),
    "no JSON": header("x" * 10),
    "deep": header('{"a":' + DEEP),
    "past 64 bits": header(
        json.dumps({"score.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}})
    ),
    "empty": b"",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_of_safetensors_are_one_line(model, name):
    (model / "model.safetensors").write_bytes(HEADERS[name])
    sealed(model)
    for command in (("score", "model", ROWS), SERVE):
        assert "cannot load the weights of model: SafetensorError: " in in_one_line(*command)
    assert "the weights of model cannot be read: " in in_one_line("verify", "model")
    inspected = run_cli("inspect-token", "model")
    assert inspected.code == 0 or "is damaged: " in inspected.stderr


def index_naming(model: Path, value: object) -> None:
    """All weights lie, by the index, in this file."""
    with safe_open(model / "model.safetensors", "pt") as file:
        names = list(file.keys())
    shutil.move(model / "model.safetensors", "outside.safetensors")
    weight_map = dict.fromkeys(names, value)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (model / "other.safetensors").write_bytes(Path("outside.safetensors").read_bytes())
    sealed(model)


@pytest.mark.parametrize("value", ["../outside.safetensors", "/etc/passwd", "a/b", "..", "a\\b", 3, ["x"], None])
def test_an_index_that_leads_out_of_its_folder_is_not_followed(model, value):
    index_naming(model, value)
    said = f"model.safetensors.index.json names {str(value)!r}, which is no file beside it"
    for arguments in (("score", "model", ROWS), ("verify", "model"), ("inspect-token", "model"), SERVE):
        assert said in in_one_line(*arguments)
    with pytest.raises(RmcliError, match="which is no file beside it"):
        list(stored_tensors({"pretrained_model_name_or_path": "model"}))


def test_an_index_of_files_beside_it_is(model):
    before = run_cli("score", "model", ROWS).stdout
    index_naming(model, "other.safetensors")
    assert run_cli("score", "model", ROWS).stdout == before


def test_a_link_to_another_file_is_read_as_weights_and_as_nothing_else(model):
    Path("secret").write_text("SECRET" * 10)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(Path("secret").absolute())
    sealed(model)
    said = in_one_line("score", "model", ROWS)
    assert "SafetensorError" in said
    assert "SECRET" not in said


GOLDEN = {
    "NaN": {"score": float("nan")},
    "infinite": {"score": float("inf")},
    "past float32": {"score": 10**400},
    "a text": {"score": "0.1"},
    "a truth": {"score": True},
    "none": {"score": None},
    "ids that are none": {"input_ids": ["a"]},
    "a conversation that is none": {"messages": "abc"},
    "messages that are none": {"messages": [1]},
    "a text that is none": {"text": 5},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_lines_that_prove_nothing_are_refused(model, name):
    lines = (model / "golden.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | GOLDEN[name])
    (model / "golden.jsonl").write_text("\n".join(lines) + "\n")
    sealed(model)
    for command in (("verify", "model"), SERVE):
        assert "golden.jsonl cannot be read: each line needs" in in_one_line(*command)


@pytest.mark.parametrize("text", [DEEP, "[]", "null", "", "no JSON", '{"text": "\\ud800"}'])
def test_golden_files_of_another_form_are_refused(model, text):
    (model / "golden.jsonl").write_text(text + "\n" if text else "")
    sealed(model)
    for command in (("verify", "model"), SERVE):
        assert "golden.jsonl cannot be read: " in in_one_line(*command)


HALVES = {
    "text": "\ud800",
    "messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}],
}


@pytest.mark.parametrize("name", HALVES)
def test_golden_lines_with_half_a_character_are_refused(model, name):
    lines = (model / "golden.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {name: HALVES[name]})
    (model / "golden.jsonl").write_text("\n".join(lines) + "\n")
    sealed(model)
    for command in (("verify", "model"), SERVE):
        assert "golden.jsonl cannot be read: " in in_one_line(*command)


@pytest.mark.parametrize(
    "change", [{"messages": [{}]}, {"messages": []}, {"text": ""}, {"input_ids": [2**70]}, {"input_ids": []}]
)
def test_golden_lines_of_another_conversation_end_the_server(model, change):
    lines = (model / "golden.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    (model / "golden.jsonl").write_text("\n".join(lines) + "\n")
    sealed(model)
    assert "of golden conversation 2: " in in_one_line(*SERVE)


def test_a_golden_score_that_is_no_number_is_never_near_enough(model):
    """Whoever reads the lines: `max` passes NaN over."""
    lines = [json.loads(line) for line in (model / "golden.jsonl").read_text().splitlines()]
    (model / "golden.jsonl").write_text("".join(json.dumps(line | {"score": float("nan")}) + "\n" for line in lines))
    case = {"dtype": "float32", "attention": "eager", "batch": 8, "side": "right", "limit": 1e-4}
    _, answer = plain.measure("model", [case])
    assert answer["fault"] == "a score is not finite"


TOML = {
    f"a = {DEEP}": "not valid TOML",
    "model = [1]": "[model] must be a table",
    "train = 3": "[train] must be a table",
    "[evil]\na = 1": "unknown section [evil]",
    "\0": "not valid TOML",
    "[data]\nmax_row_bytes = 99999999999999999999": "does not fit into 64 bits",
    "[data]\nnum_proc = -1": "data.num_proc = -1",
    "[model]\nreward_token_id = 99999999": "model.reward_token_id = 99999999 is out of range",
}


@pytest.mark.parametrize("text", TOML)
def test_a_hostile_rmcli_toml_is_one_line(model, text):
    (model / "rmcli.toml").write_text(text + "\n")
    sealed(model)
    assert TOML[text] in in_one_line("score", "model", ROWS)


CONFIGS = {
    "deep": DEEP,
    "a list": "[]",
    "architectures": {"architectures": [1]},
    "text_config": {"text_config": 5},
    "hidden_size": {"hidden_size": 2**60},
    "model_type": {"model_type": ["x"]},
    "hidden_act": {"hidden_act": "os.system"},
    "dtype": {"dtype": "load"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_one_line(model, name):
    value = CONFIGS[name]
    if isinstance(value, str):
        (model / "config.json").write_text(value)
    else:
        change_json(model / "config.json", **value)
    sealed(model)
    in_one_line("score", "model", ROWS)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_tokenizer_files_nested_too_deep_are_one_line(model, name):
    (model / name).write_text(DEEP)
    sealed(model)
    assert "maximum recursion depth exceeded" in in_one_line("score", "model", ROWS)


def test_what_a_run_keeps_is_read_with_the_same_care(run):
    (run / "run.json").write_text(DEEP)
    (run / "metrics.jsonl").write_text(DEEP + "\n")
    assert run_cli("export", "run", "-o", "out").code == 0
    (run / "checkpoints" / "step-3" / "checkpoint.json").write_text(DEEP)
    sealed(run / "checkpoints" / "step-3")
    assert "checkpoint.json cannot be read: " in in_one_line("export", "run", "-o", "again")


def test_a_manifest_nested_too_deep_is_one_line(cli):
    shutil.copytree(BEFORE / "data", "data")
    Path("data/manifest.json").write_text(DEEP)
    assert "data/manifest.json is damaged" in in_one_line("audit", "data")
    assert not marker().exists()


BASE_CARDS = [
    "---\nlicense: !!python/object/apply:os.system ['touch RAN']\n---\n",
    "---\nlicense: ['mit']\nbase_model: {a: b}\n---\n",
    '---\nlicense: "mit\\n---\\n# Another card"\n---\n',
    "---\n" + "[" * 1500 + "\n---\n",
    "---\nlicense: [\n---\n",
    "no card",
]


@pytest.mark.parametrize("text", BASE_CARDS)
def test_the_card_of_a_base_model_is_data(cli, text):
    Path("base").mkdir()
    Path("base/README.md").write_text(text)
    assert lineage("base") == {"name": "base", "on_hub": False}
    assert not marker().exists()
