"""Other people's code on an exported folder, in environments of its own: it scores as rmcli does."""

import json
import shutil
from pathlib import Path

import pytest

import consumers
from rmcli.ship.limits import limit
from support.places import missing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("consumers")
    made = {mode: consumers.make_folder(place / mode, mode) for mode in consumers.MODES}
    return made | {name: consumers.make_folder(place / name, "reserved", name) for name in consumers.OTHERS}


def python_of(environment: str) -> Path:
    found = consumers.python_of(environment)
    if not found.is_file():
        missing(f"the environment {found.parent.parent.name} (make {found.parent.parent.name}/.installed)")
    return found


def name_of(worker: consumers.Worker) -> str:
    return f"{worker.script.removeprefix('_consumer_').removesuffix('.py')}-{worker.environment}"


@pytest.mark.parametrize("worker", consumers.WORKERS, ids=name_of)
def test_a_consumer_gives_the_scores_of_rmcli(worker, folders):
    python = python_of(worker.environment)
    names = [*consumers.MODES, *worker.architectures]
    told = consumers.run(worker, python, [folders[name] for name in names])
    assert list(told["folders"]) == names
    for name, ways in told["folders"].items():
        allowed = limit("float32", consumers.golden(folders[name]))
        for way, scores in ways.items():
            assert len({round(one["score"], 3) for one in scores}) >= 6, (name, way)
            assert max(consumers.differences(folders[name], scores)) <= allowed, (name, way)


def without(folder: Path, place: Path, *keys: str) -> Path:
    """The folder with a config.json that lacks these keys."""
    shutil.copytree(folder, place)
    values = json.loads((place / "config.json").read_text())
    assert all(key in values for key in keys)
    kept = {key: value for key, value in values.items() if key not in keys}
    (place / "config.json").write_text(json.dumps(kept))
    return place


@pytest.mark.parametrize("name", ["reserved", *consumers.OTHERS])
def test_without_the_older_rope_keys_transformers_4_scores_otherwise(folders, tmp_path, name):
    """Silently: they are what makes the test above hold."""
    keys = ["rope_theta", "rope_local_base_freq"] if name == "gemma3_text" else ["rope_theta"]
    damaged = without(folders[name], tmp_path / "damaged", *keys)
    told = consumers.run(consumers.WORKERS[1], python_of("old"), [damaged])
    assert told["versions"]["transformers"].startswith("4.57.")
    for scores in told["folders"]["damaged"].values():
        lines = consumers.golden(damaged)
        assert max(abs(one["score"] - line["score"]) for one, line in zip(scores, lines, strict=True)) > 0.1


def test_without_its_key_a_cross_encoder_gives_a_sigmoid(folders, tmp_path):
    damaged = without(folders["reserved"], tmp_path / "damaged", "sentence_transformers")
    told = consumers.run(consumers.WORKERS[3], python_of("trl"), [damaged])
    assert all(0 < one["score"] < 1 for one in told["folders"]["damaged"]["CrossEncoder"])
