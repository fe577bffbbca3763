"""README.md of a model folder: what it says, that its code runs, that nothing private is in it, and whose it is."""

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rmcli.model.hashes import first_fault
from rmcli.runs.metrics_file import evaluation_at
from rmcli.ship import golden
from rmcli.ship.card.evaluation import about_length
from rmcli.ship.card.page import is_ours, sealed
from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"
HELD_OUT = {
    "step": 3,
    "eval_accuracy": 0.75,
    "eval_margin": 1.25,
    "eval_pairs": 100,
    "eval_score_min": -2.0,
    "eval_score_max": 3.0,
    "eval_longer_pairs": 50,
    "eval_longer_accuracy": 0.96,
    "eval_shorter_pairs": 40,
    "eval_shorter_accuracy": 0.5,
}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run in the working folder, whose data is at hand; its newest checkpoint is that of step 3."""
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    tell(tmp_path / "run", data={"folder": str(BEFORE / "data"), "manifest_sha256": manifest()["manifest_sha256"]})
    return Path("run")


def manifest() -> dict:
    return json.loads((BEFORE / "data" / "manifest.json").read_text())


def tell(run: Path, **facts: object) -> None:
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | facts))


def evaluated(run: Path, **changes: object) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(HELD_OUT | changes) + "\n")


def configured(run: Path, before: str, after: str) -> None:
    text = (run / "resolved.toml").read_text()
    assert before in text
    (run / "resolved.toml").write_text(text.replace(before, after))


@pytest.fixture
def card(cli, run):
    """`card("--dtype", "bfloat16")`: the text of README.md of an export."""

    def make(*options: str) -> str:
        result = cli("export", run, "-o", "model", *options)
        assert result.code == 0, result.stderr
        return Path("model/README.md").read_text()

    return make


def words(text: str) -> str:
    """Without line breaks."""
    return " ".join(text.split())


def test_the_data_stands_in_it_with_hashes_and_counts(card):
    text = card()
    assert f"`{manifest()['manifest_sha256']}`" in text
    assert "Rows: 60 in = 60 kept + 0 rejected + 0 duplicates + 0 not taken." in text
    assert "| tasks:60 | 60 | 60 | 0 | 0 | 0 |" in text
    assert "| train | 52 | 52 | 1,766 | 0 |\n| eval | 8 | 8 | 274 | 0 |\n" in text
    assert f"checkable_tasks, whose source has the sha256 `{manifest()['map_fn_sha256']['checkable_tasks']}`" in text


def test_what_train_writes_says_where_rows_went_and_what_was_measured(cli, tmp_path):
    rows = [{"prompt": f"Sort: {n} 1", "chosen": f"1 {n}", "rejected": "?" * n} for n in range(2, 60)]
    lines = [*map(json.dumps, rows), "no JSON", json.dumps(rows[0]), json.dumps({"prompt": "a"})]
    (tmp_path / "my rows.jsonl").write_text("\n".join(lines) + "\n")
    setting = ("-p", "tiny", "-s", "data.eval_fraction=0.5")
    source = tmp_path / "my rows.jsonl"
    assert cli("prepare", source, "--map-fn", "canonical", "-o", "data", "--no-audit", *setting).code == 0
    trained = cli("train", "--data", "data", "-o", "run", *setting, "-s", "train.max_steps=2", "--json")
    assert trained.code == 0, trained.stderr
    text = Path("run/model/README.md").read_text()
    figures = json.loads(trained.stdout)
    assert str(tmp_path) not in text
    assert "| my rows.jsonl | 61 | 58 | 2 | 1 | 0 |" in text
    assert "Rejected because: bad_json 1, missing_column chosen 1." in text
    accuracy, pairs = figures["eval_accuracy"], figures["eval_pairs"]
    assert f"After step 2, on pairs held out by their prompts: accuracy **{accuracy:.3f} (" in text
    assert f"on {pairs} pairs**" in text
    longer, shorter = figures["eval_longer_pairs"], figures["eval_shorter_pairs"]
    assert (
        f"In {longer} of {longer + shorter} held-out pairs of unequal length the better answer is the longer" in text
    )
    (result,) = ModelCard.load("run/model/README.md").data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(accuracy, 4))
    assert cli("export", "run", "-o", "again").code == 0
    assert Path("again/README.md").read_text() == text


def test_accuracy_has_wilsons_interval_and_length_is_judged_by_it(run, card):
    evaluated(run, step=2, eval_accuracy=0.1)
    evaluated(run)
    text = words(card())
    assert (
        "After step 3, on pairs held out by their prompts: accuracy **0.750 (0.657 to 0.825) on 100 pairs**" in text
    )
    assert "mean margin 1.250." in text
    assert "Scores lie between -2.000 and 3.000." in text
    assert "In 50 of 90 held-out pairs of unequal length the better answer is the longer one." in text
    assert "better answer is the longer one: 0.960 (0.865 to 0.989) on 50 pairs." in text
    assert "where it is the shorter one: 0.500 (0.352 to 0.648) on 40 pairs." in text
    assert "The score favours longer answers: the intervals do not meet." in text
    assert "rounded" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_longer_pairs": None}, "Length bias was not measured: no evaluation of this checkpoint"),
        ({"eval_accuracy": float("nan")}, "Nothing was measured on held-out pairs after this step"),
        ({"step": 2}, "Nothing was measured on held-out pairs after this step"),
    ],
)
def test_what_is_not_known_is_said_in_a_line(run, card, changes, said):
    evaluated(run, **changes)
    assert said in words(card())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"longer_accuracy": 0.5, "shorter_accuracy": 0.97},
            "The score favours shorter answers: the intervals do not meet.",
        ),
        ({"longer_accuracy": 0.6}, "The intervals meet: these pairs show no bias towards length, and do not prove"),
        ({"longer_pairs": 0, "shorter_pairs": 0}, "Length bias cannot be told: in no held-out pair is one answer"),
    ],
)
def test_length_is_judged_by_both_intervals(changes, said):
    figures = {key.removeprefix("eval_"): value for key, value in HELD_OUT.items()}
    assert about_length(figures | changes)[-1].startswith(said)


def test_figures_that_are_no_numbers_are_none(cli, run):
    evaluated(run, eval_accuracy="0.9", eval_margin=True, eval_score_min=float("inf"))
    assert evaluation_at(run, 3).keys() == {key.removeprefix("eval_") for key in HELD_OUT} - {
        *("step", "accuracy", "margin", "score_min")
    }


def test_rounding_after_the_evaluation_is_said(run, card):
    evaluated(run)
    assert "Measured before the weights were rounded to bfloat16." in words(card("--dtype", "bfloat16"))


def test_data_that_is_gone_or_another_set_now_is_not_told_of(cli, run, card):
    tell(run, data={"folder": "gone", "manifest_sha256": "5" * 64})
    text = words(card())
    assert (
        f"was not at hand when this folder was written; the manifest of the set has the sha256 `{'5' * 64}`" in text
    )
    tell(run, data={"folder": str(BEFORE / "data"), "manifest_sha256": "5" * 64})
    result = cli("export", run, "-o", "model", "--overwrite")
    assert "nothing of the run's data is told or scored: another set has been prepared there since" in result.stderr
    assert words(Path("model/README.md").read_text()) == text
    assert len(Path("model", golden.FILE).read_text().splitlines()) == 6


def test_no_path_of_the_machine_is_in_it(run, card):
    configured(
        run, 'pretrained_model_name_or_path = "nano"', 'pretrained_model_name_or_path = "/home/ann/secret/nano"'
    )
    configured(run, 'dataset_map_fn = "checkable_tasks"', 'dataset_map_fn = "/home/ann/maps.py:best"')
    sources = '[{path = "/home/ann/a.jsonl", system = "Ann says"}, "s3://ann:key@bucket/b.jsonl?token=key"]'
    configured(run, 'sources = ["tasks:60"]', f"sources = {sources}")
    configured(run, "decontaminate = []", 'decontaminate = ["C:\\\\Users\\\\ann\\\\test.jsonl"]')
    told = {"name": "nano", "on_hub": False}
    tell(run, base=told, command="rmcli train -c /home/ann/my.toml")
    text = card()
    assert not re.search(r"ann|secret|key@|token=|Users", text)
    assert 'dataset_map_fn = "maps.py:best"' in text
    assert 'sources = [{path = "a.jsonl", system = "..."}, "b.jsonl"]' in text
    assert 'decontaminate = ["test.jsonl"]' in text


BASE = """---
license: llama3.2
license_link: https://example.org/license
base_model: org/older
---
# A base
"""


def test_the_base_and_its_licence_are_what_the_bases_own_card_says(cli, tmp_path):
    shutil.copytree(REPOSITORY / "presets" / "tiny", tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(BASE)
    settings = ("-s", f"model.pretrained_model_name_or_path={tmp_path / 'base'}", "-s", "train.max_steps=1")
    for name, random in (("drawn", "true"), ("tuned", "false")):
        result = cli(
            *("train", "-p", "tiny", "--data", BEFORE / "data", "-o", name, *settings),
            *("-s", f"model.random_weights={random}"),
        )
        assert (result.code == 0) == (random == "true"), result.stderr  # the other has no weights
    data, text = ModelCard.load("drawn/model/README.md").data, words(Path("drawn/model/README.md").read_text())
    assert (data.license, data.license_link, data.base_model) == ("llama3.2", "https://example.org/license", None)
    assert "they were drawn at random, in the shape of base." in text
    told = json.loads(Path("tuned/run.json").read_text())["base"]
    assert told == {
        **{"name": "base", "on_hub": False, "license": "llama3.2"},
        **{"license_link": "https://example.org/license", "made_of": ["org/older"]},
    }


def test_a_hub_name_is_the_base_model_and_an_unknown_licence_is_called_so(run, card, monkeypatch):
    configured(run, 'pretrained_model_name_or_path = "nano"', 'pretrained_model_name_or_path = "org/base"')
    configured(run, "random_weights = true", "random_weights = false")
    tell(run, base={"name": "org/base", "on_hub": True, "revision": "v2", "made_of": ["org/older"]})
    text = card()
    data = ModelCard.load("model/README.md").data
    assert (data.base_model, data.license, data.library_name) == ("org/base", "unknown", "transformers")
    assert "Made of org/base (revision v2). Its own card says that it was made of org/older." in words(text)
    assert "Licence: unknown. No card of the base model that names one was at hand in training" in words(text)
    assert 'pretrained_model_name_or_path = "org/base"' in text


@pytest.mark.parametrize("told", ["text", {"name": None, "license": ["mit"], "made_of": "org/older"}])
def test_a_run_that_does_not_tell_its_base_has_a_card_all_the_same(run, card, told):
    tell(run, base=told, versions=told)
    assert "Licence: unknown." in card()


def snippets(folder: Path) -> dict[str, str]:
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return {re.search(r"RewardModel|pipeline|AutoModel", code)[0]: code for code in found}


@pytest.mark.parametrize("tool", ["AutoModel", "pipeline", "RewardModel"])
def test_the_code_of_the_card_gives_the_golden_score(card, monkeypatch, tool):
    card()
    lines = [json.loads(line) for line in Path("model", golden.FILE).read_text(encoding="utf-8").splitlines()]
    code = snippets(Path("model"))[tool]
    assert len(re.findall(r"from_pretrained\(|pipeline\(", code)) == code.count("trust_remote_code=False")
    monkeypatch.chdir("model")
    names: dict = {}
    exec(code, names)
    (expected,) = (line["score"] for line in lines if line["messages"] == names["conversation"])
    assert names["score"] == pytest.approx(expected, abs=1e-5)


def test_what_transformers_cannot_load_has_the_code_of_rmcli_alone(card):
    text = card("--format", "internlm2")
    assert snippets(Path("model")).keys() == {"RewardModel"}
    assert "transformers has no such classifier: rmcli loads it." in text
    assert ModelCard.load("model/README.md").data.library_name == "rmcli"


def test_no_network_is_asked(card, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert is_ours(card())


def test_a_card_that_its_owner_has_changed_is_kept_and_verified(cli, run, card):
    assert is_ours(card())
    Path("model/README.md").write_text("# Mine\n")
    Path("model/plot.png").write_bytes(b"png")
    assert first_fault(Path("model"), may_be_added=lambda name: name == "plot.png") is None
    assert cli("score", "model", BEFORE / "data" / "eval.jsonl").code == 0
    for _ in range(2):
        result = cli("export", run, "-o", "model", "--overwrite")
        assert result.code == 0, result.stderr
        said = "kept of the earlier model: README.md, plot.png; the card is your own, and none is written"
        assert said in result.stderr
        assert Path("model/README.md").read_text() == "# Mine\n"
        assert Path("model/plot.png").read_bytes() == b"png"


def test_a_card_that_nobody_has_changed_is_written_anew(cli, run, card):
    first = card()
    evaluated(run)
    result = cli("export", run, "-o", "model", "--overwrite")
    assert "kept" not in result.stderr
    second = Path("model/README.md").read_text()
    assert second != first
    assert is_ours(second)
    assert not is_ours(second.replace("0.750", "0.950"))
    assert not is_ours(second + "Mine.\n")
    assert is_ours(sealed("text"))


@pytest.mark.parametrize("name", [".git", "adapter_config.json"])
def test_what_a_new_export_would_take_away_stops_it(cli, run, card, name):
    card()
    (Path("model", name).mkdir if name == ".git" else Path("model", name).touch)()
    result = cli("export", run, "-o", "model", "--overwrite")
    assert result.code == 2
    assert f"error: model/{name} was not exported, and would be lost\n" in result.stderr
    assert Path("model", name).exists()


def test_a_run_that_goes_on_takes_nothing_away(cli, tmp_path):
    """Its model folder has become somebody's repository, and a template in it was mended by hand."""
    line = ("train", "--data", "data", "-p", "tiny", "-o", "run", "-s", "train.max_epochs=9")
    assert cli("prepare", "tasks:40", "-p", "tiny", "-o", "data", "--no-audit").code == 0
    assert cli(*line, "-s", "train.max_steps=1").code == 0
    Path("run/model/.git").mkdir()
    Path("run/model/.git/HEAD").write_text("mine")
    Path("run/model/vocab.json").write_text("mine")
    result = cli("train", "--resume", "-o", "run", "-s", "train.max_steps=2")
    assert result.code == 0, result.stderr
    assert "run/model is kept as run/model.before-1: .git in it was not exported" in result.stderr
    assert Path("run/model.before-1/.git/HEAD").read_text() == Path("run/model.before-1/vocab.json").read_text()
    assert first_fault(Path("run/model")) is None
    template = Path("run/model/chat_template.jinja")
    template.write_text(template.read_text() + "{# mine #}")
    result = cli("train", "--resume", "-o", "run", "-s", "train.max_steps=3")
    assert "run/model is kept as run/model.before-2: chat_template.jinja was changed: sha256" in result.stderr
    assert Path("run/model.before-2/chat_template.jinja").read_text().endswith("{# mine #}")
    assert "kept as" not in cli("train", "--resume", "-o", "run", "-s", "train.max_steps=4").stderr


def test_the_process_that_verifies_takes_the_folder_with_any_card(card):
    card()
    Path("model/README.md").unlink()
    assert first_fault(Path("model")) is None
