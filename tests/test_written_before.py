"""Folders that version 0.1.0 wrote, all but `run` before the package was laid out in rooms: they load.

Made on a CPU, with `nano` the tiny preset's folder at hidden_size 16, intermediate_size 32, 2 layers and 2 heads:
    rmcli prepare tasks:60 -p tiny -o data -s data.eval_fraction=0.2
    rmcli train -p tiny --data data -o run -s model.pretrained_model_name_or_path=nano -s train.max_steps=20
        -s train.max_epochs=20 -s train.pairs_per_step=16
    rmcli score run/model data/eval.jsonl -o scores.jsonl
The data is written the same today. The run to go on with is by the first version that could; of its six steps
(run_metrics.jsonl) three are done:
    rmcli train -p tiny --data data -o run -s model.pretrained_model_name_or_path=nano -s train.max_steps=6
        -s train.max_epochs=20 -s train.pairs_per_step=16 -s train.log_every=2 -s train.save_steps=3
"""

import json
import shutil
from pathlib import Path

import pytest

from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"


def test_a_data_folder_written_before_trains_and_is_audited(cli, tmp_path):
    trained = cli("train", "-p", "tiny", "--data", BEFORE / "data", "-o", tmp_path / "run", "-s", "train.max_steps=2")
    assert trained.code == 0, trained.stderr
    audited = cli("audit", BEFORE / "data", "--json")
    assert audited.code == 0, audited.stderr
    assert json.loads(audited.stdout)["splits"]["train"]["groups"] == 52


def test_a_model_folder_written_before_scores_as_it_did(cli):
    scored = cli("score", BEFORE / "model", BEFORE / "data" / "eval.jsonl")
    assert scored.code == 0, scored.stderr
    now = [json.loads(line) for line in scored.stdout.splitlines()]
    then = [json.loads(line) for line in (BEFORE / "scores.jsonl").read_text().splitlines()]
    assert len(now) == len(then) == 8
    for one, other in zip(now, then, strict=True):
        assert one == {key: pytest.approx(value, abs=1e-6) for key, value in other.items()}


def test_a_run_written_before_goes_on(cli):
    """Without the model it began with, which is not kept. Rates apart the lines are those of a run never stopped."""
    shutil.copytree(BEFORE / "run", "run")
    result = cli("train", "--resume", "-o", "run", "--data", BEFORE / "data")
    assert result.code == 0, result.stderr
    assert "going on from run/checkpoints/step-3, after step 3 of 6" in result.stderr
    now = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    then = [json.loads(line) for line in (BEFORE / "run_metrics.jsonl").read_text().splitlines()]
    assert len(now) == len(then) == 5
    for one, other in zip(now, then, strict=True):
        added = {f"eval_{name}_{what}" for name in ("shorter", "longer") for what in ("pairs", "accuracy")}
        added |= {f"eval_{name}" for name in ("ece", "brier", "log_loss", "temperature")}
        added |= {f"eval_{name}" for name in ("length_spearman", "longer_wins", "beyond_bound")}
        assert one.keys() - added == other.keys()
        for key, value in other.items():
            assert key.endswith("_per_s") or one[key] == pytest.approx(value, abs=1e-6), key


def test_prepare_writes_the_bytes_it_wrote(cli, tmp_path):
    prepared = cli("prepare", "tasks:60", "-p", "tiny", "-o", "data", "-s", "data.eval_fraction=0.2", "--no-audit")
    assert prepared.code == 0, prepared.stderr
    then, now = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (BEFORE / "data", tmp_path / "data")
    )
    then_said, now_said = (json.loads(files.pop(Path("manifest.json"))) for files in (then, now))
    assert now == then
    for manifest in (then_said, now_said):  # the engine's version is that of the installed library
        del manifest["tokenizer_engine"], manifest["manifest_sha256"]
    for manifest in (then_said, now_said):  # canonical reads more than it did
        del manifest["map_fn_sha256"]
    assert now_said.pop("files").keys() == {str(path) for path in now if path.suffix != ".arrow"}  # hashes since then
    assert len(now_said.pop("ids_sha256")) == 64  # since a set fits the reward models of its base, too
    for section, keys in then_said["config"].items():  # settings that came since are said too
        now_said["config"][section] = {key: now_said["config"][section][key] for key in keys}
    assert list(now_said) == list(then_said)
    assert now_said == then_said
