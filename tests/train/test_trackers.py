"""Trackers get the lines of metrics.jsonl; one that does not work ends no run, and no other process has any."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest

from rmcli.config.resolve import resolve
from rmcli.train import tracker_options, trackers
from rmcli.train.trackers import IDS, flat, tracking
from support.cli import Result, as_options
from support.places import write_lines

PAIRS = [{"prompt": f"Add {n} and 1", "chosen": str(n + 1), "rejected": str(n)} for n in range(20)]


SHORT = as_options("train.max_steps=2", "train.pairs_per_step=4", "train.log_every=1")


@pytest.fixture
def data(cli: Any, tmp_path: Path) -> Path:
    write_lines(tmp_path / "pairs.jsonl", PAIRS)
    options = ("-p", "tiny", "--map-fn", "canonical", "--no-audit", *as_options("data.eval_fraction=0.2"))
    assert cli("prepare", "pairs.jsonl", *options, "-o", "data").code == 0
    return tmp_path / "data"


def tracked(cli: Any, data: Path, *options: str, names: str = '["tensorboard"]') -> Result:
    line = ("train", "-p", "tiny", "--data", data, "-o", "run", *SHORT, *as_options(f"train.trackers={names}"))
    return cli(*line, *options)


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


class Recorder:
    """As accelerate's, of what it was asked. `breaks` at the call of that name."""

    seen: list[tuple[Any, ...]]
    breaks: str | None = None

    def __init__(self, *place: object, **options: object) -> None:
        self._saw("made", *place, options)

    def start(self) -> None:
        self._saw("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._saw("config", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._saw("log", step, values)
        accelerate.tracking.logger.debug("as accelerate's do")

    def finish(self) -> None:
        self._saw("finish")

    def _saw(self, *call: object) -> None:
        self.seen.append(call)
        if self.breaks == call[0]:
            print("what it says")
            raise SystemExit(input("your key? "))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    kind = type("Recorder", (Recorder,), {"seen": []})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", kind)
    return kind


def test_a_tracker_gets_the_lines_under_their_names_and_the_configuration(cli, data, recorder):
    assert tracked(cli, data).code == 0
    assert [call[0] for call in recorder.seen] == ["made", "start", "config", "log", "log", "log", "finish"]
    logged = [{"step": step, **values} for _, step, values in recorder.seen[3:6]]
    assert logged == [{key: value for key, value in line.items() if value is not None} for line in lines()]
    assert {"loss", "lr", "accuracy", "grad_norm"} < logged[0].keys()
    assert {"eval_loss", "eval_accuracy"} < logged[2].keys()
    config = recorder.seen[2][1]
    assert (config["train.lr"], config["loss.loss_type"], config["train.trackers"]) == (
        4e-3,
        "ranking",
        "['tensorboard']",
    )


def test_a_run_that_goes_on_goes_on_in_its_tracker(cli, data, recorder):
    assert tracked(cli, data).code == 0
    first = json.loads(Path("run", IDS).read_text())
    recorder.seen.clear()
    assert cli("train", "--resume", "-o", "run", *as_options("train.max_steps=3")).code == 0
    assert recorder.seen[0] == ("made", "tensorboard", Path("run"), {"purge_step": 3})
    assert [call[0] for call in recorder.seen] == ["made", "start", "log", "log", "finish"]
    assert json.loads(Path("run", IDS).read_text()) == first
    # One that may be left out, or be new, when the run goes on.
    assert cli("train", "--resume", "-o", "run", *as_options("train.max_steps=4", "train.trackers=[]")).code == 0


@pytest.mark.parametrize("call", ["made", "start", "config", "log", "finish"])
def test_a_broken_tracker_is_one_note_and_ends_no_run(cli, data, recorder, call):
    """It prints, asks, and raises what is no Exception."""
    recorder.breaks = call
    result = tracked(cli, data)
    assert result.code == 0
    assert result.stdout == "run/model\n"
    said = "note: the tracker tensorboard does not work, and the run goes on without it: EOF when reading a line"
    assert result.stderr.count("the tracker") == result.stderr.count(said) == 1
    assert len(lines()) == 3
    assert [made[0] for made in recorder.seen].count(call) == 1


def test_a_tracker_that_is_not_installed_is_one_note_with_the_command(cli, data, monkeypatch):
    def nothing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(tracker_options, "import_module", nothing)
    result = tracked(cli, data, names='["wandb"]')
    assert result.code == 0
    assert result.stderr.count("the tracker wandb does not work, and the run goes on without it: No module") == 1
    assert "[wandb]'" in result.stderr


def test_an_accelerate_that_lacks_one_is_one_note(cli, data, monkeypatch):
    monkeypatch.delitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio")
    result = tracked(cli, data, names='["trackio"]')
    assert result.code == 0
    assert f"accelerate {accelerate.__version__} has none of this name" in result.stderr


def test_other_processes_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.world, "is_first", lambda: False)
    monkeypatch.setattr(tracker_options, "maker", lambda *asked: pytest.fail("made"))
    config = resolve("tiny", settings=['train.trackers=["wandb"]']).config
    with tracking(SimpleNamespace(config=config, run_folder=tmp_path)) as found:
        found.log({"step": 1, "loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_the_configuration_is_what_every_tracker_takes():
    values = flat(resolve("tiny").config)
    assert {type(value) for value in values.values()} <= {bool, int, float, str}
    assert (values["train.head_lr"], values["train.betas"]) == ("None", "[0.9, 0.95]")


class Wandb(SimpleNamespace):
    """What is asked of the package before accelerate's class is."""

    Settings = staticmethod(lambda **settings: settings)


def options_of_wandb(monkeypatch: pytest.MonkeyPatch, folder: Path, **environment: str) -> dict[str, Any]:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tracker_options, "import_module", lambda name: Wandb())
    kind = type("Recorder", (Recorder,), {"seen": []})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", kind)
    tracker_options.maker("wandb", folder / "run-7", {"run": "1234abcd"}, 0)()
    ((_, project, options),) = kind.seen
    return {"project": project, **options}


def test_wandb_without_a_login_is_offline_and_never_asks(tmp_path, monkeypatch):
    told = options_of_wandb(monkeypatch, tmp_path)
    assert (told["mode"], told["project"], told["id"], told["name"]) == ("offline", "rmcli", "1234abcd", "run-7")
    assert (told["resume"], told["dir"]) == ("allow", str(tmp_path / "run-7"))
    assert tracker_options.what_to_know("wandb", Path("run-7")) == (
        "wandb has no login here: it writes into run-7/wandb alone, which wandb sync sends"
    )
    assert told["settings"] == {"silent": True, "console": "off", "init_timeout": 30, "finish_timeout": 30}
    assert options_of_wandb(monkeypatch, tmp_path, WANDB_API_KEY="k", WANDB_PROJECT="mine")["mode"] is None
    assert tracker_options.what_to_know("wandb", Path("run-7")) is None
    assert options_of_wandb(monkeypatch, tmp_path, WANDB_MODE="disabled")["mode"] is None  # wandb reads it
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / "netrc").chmod(0o600)
    assert options_of_wandb(monkeypatch, tmp_path)["mode"] is None
    assert options_of_wandb(monkeypatch, tmp_path, WANDB_BASE_URL="https://own.example")["mode"] == "offline"


# --- the real ones, as a user has them: in a process of their own ---

OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "TRACKIO_DIR": "trackio"}


def in_process(*line: str, **environment: str) -> str:
    names = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **OFFLINE, **environment}
    done = subprocess.run(
        line, capture_output=True, text=True, env=names, stdin=subprocess.DEVNULL, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_in_process(data: Path, name: str) -> str:
    """Two steps, and a third after a start of its own."""
    rmcli = (sys.executable, "-m", "rmcli", "train")
    line = (*rmcli, "-p", "tiny", "--data", str(data), "-o", "run", *SHORT, *as_options(f'train.trackers=["{name}"]'))
    said = in_process(*line) + in_process(*rmcli, "--resume", "-o", "run", *as_options("train.max_steps=3"))
    assert "does not work" not in said
    assert said.count("run/model\n") == 2
    return said


READ_EVENTS = """
import json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator("run/tensorboard").Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""


@pytest.mark.slow
def test_tensorboard_has_every_line(data):
    run_in_process(data, "tensorboard")
    found = json.loads(in_process(sys.executable, "-c", READ_EVENTS).splitlines()[-1])
    logged = [line for line in lines() if "loss" in line]
    assert found["loss"] == [[line["step"], pytest.approx(line["loss"], rel=1e-6)] for line in logged]
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [step for step, _ in found["eval_accuracy"]] == [2, 3]
    (hparams,) = Path("run/tensorboard").glob("*/hparams.yml")
    assert "train.lr: 0.004\n" in hparams.read_text()


# wandb's own file: seven bytes, then blocks of 32 KiB with LevelDB's records (checksum, length, part of what).
READ_WANDB = """
import glob, json, struct
from wandb.proto import wandb_internal_pb2

def records(data):
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""

found = {"id": [], "loss": [], "config": []}
for path in sorted(glob.glob("run/wandb/offline-run-*/*.wandb")):
    for data in records(open(path, "rb").read()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            found["id"].append(record.run.run_id)
        found["config"] += [item.key for part in (record.run.config, record.config) for item in part.update]
        for item in record.history.item:
            if (item.key or "/".join(item.nested_key)) == "loss":
                found["loss"].append(float(item.value_json))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_wandb_offline_has_every_line_under_one_id(data):
    run_in_process(data, "wandb")
    found = json.loads(in_process(sys.executable, "-c", READ_WANDB).splitlines()[-1])
    assert found["loss"] == pytest.approx([line["loss"] for line in lines() if "loss" in line], rel=1e-6)
    assert set(found["id"]) == {json.loads(Path("run", IDS).read_text())["run"]}
    assert {"train.lr", "loss.loss_type"} <= set(found["config"])


READ_MLFLOW = """
import json, mlflow
client = mlflow.MlflowClient()
(run,) = client.search_runs([client.get_experiment_by_name("rmcli").experiment_id])
history = client.get_metric_history(run.info.run_id, "loss")
print(json.dumps({"loss": [[m.step, m.value] for m in history], "params": dict(run.data.params)}))
"""


@pytest.mark.slow
def test_mlflow_has_every_line_in_one_run(data):
    pytest.importorskip("mlflow")
    run_in_process(data, "mlflow")
    found = json.loads(in_process(sys.executable, "-c", READ_MLFLOW).splitlines()[-1])
    assert found["loss"] == [[line["step"], line["loss"]] for line in lines() if "loss" in line]
    assert found["params"]["train.lr"] == "0.004"


@pytest.mark.slow
def test_trackio_takes_every_line(data):
    pytest.importorskip("trackio")
    run_in_process(data, "trackio")
    assert shutil.os.listdir("trackio")
