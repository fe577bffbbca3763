"""FP8 on a CPU: torchao rounds as 8 bits do and multiplies in float32. Its kernels and speed: tests/test_cuda.py."""

import copy
import functools
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError
from rmcli.model import batch, fp8, kernels
from rmcli.model.forward import scores
from rmcli.model.network import whole_row_layers
from support.cli import as_options
from support.exactness import gradients, uneven_groups
from support.networks import tiny_model
from support.places import missing

CUDA = torch.device("cuda")


def slow(test):
    return pytest.mark.slow(pytest.mark.usefixtures("torchao")(test))


@pytest.fixture(scope="module")
def torchao():
    """From a folder of its own (make test-slow): transformers would import it in every test."""
    folder = Path(sys.prefix) / "torchao"
    if not folder.is_dir():
        missing("torchao (make test-slow installs it)")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # What it says of kernels for other machines, and torch of how it registers its types.
        patch.setattr(logging.root.manager, "disable", logging.WARNING)
        import torchao.float8  # pyright: ignore[reportMissingImports]
    return torchao


@pytest.fixture
def emulated(torchao, monkeypatch):
    """`rmcli train` on a CPU as on a GPU that has 8 bits."""
    monkeypatch.setattr("rmcli.train.job.check_fp8", lambda *_: None)
    monkeypatch.setattr("rmcli.train.run.fp8.use_fp8", functools.partial(fp8.use_fp8, emulate=True))
    monkeypatch.setattr("rmcli.model.fp8.version", lambda name: torchao.__version__)


def in_fp8(network, recipe: str = "rowwise"):
    fp8.use_fp8(whole_row_layers(network), recipe, emulate=True)
    return network


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.dtype == expected.dtype == torch.float32
    return float((actual - expected).norm() / expected.norm())


@slow
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_training_rounds_to_8_bits_and_evaluation_does_not(recipe, capsys):
    plain = tiny_model("llama")
    rounded = in_fp8(copy.deepcopy(plain), recipe)
    packed = batch.build_packed(uneven_groups())
    assert list(rounded.state_dict()) == list(plain.state_dict())
    assert f"FP8 ({recipe}): 21 of 21 linear layers multiply in 8 bits" in capsys.readouterr().err
    with torch.no_grad():
        torch.testing.assert_close(scores(rounded.eval(), packed), scores(plain.eval(), packed), atol=0, rtol=0)
    expected, actual = scores(plain.train(), packed), scores(rounded.train(), packed)
    assert 1e-2 < distance(actual.detach(), expected.detach()) < 0.25
    references = gradients(plain, expected)
    apart = {name: distance(found, references[name]) for name, found in gradients(rounded, actual).items()}
    assert max(apart.values()) < 0.5


@slow
def test_parameters_stay_the_same_objects():
    """An optimizer that was built before knows them still."""
    network = tiny_model("llama")
    before = {name: id(parameter) for name, parameter in network.named_parameters()}
    assert {name: id(parameter) for name, parameter in in_fp8(network).named_parameters()} == before


@slow
def test_uneven_layers_and_routers_stay_as_they_are(capsys):
    layer = nn.Module()
    layer.even, layer.uneven, layer.gate = nn.Linear(32, 48), nn.Linear(32, 40), nn.Linear(32, 16)
    layer.gate_proj = nn.Linear(32, 64)
    fp8.use_fp8([layer], "rowwise", emulate=True)
    kinds = {name: type(module).__name__ for name, module in layer.named_children()}
    assert kinds == {"even": "Fp8Linear", "uneven": "Linear", "gate": "Linear", "gate_proj": "Fp8Linear"}
    assert "2 of 4 linear layers" in capsys.readouterr().err


@slow
# torch's own, while it traces, as in test_kernels.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)
def test_compiled_layers_take_it_whole():
    """fullgraph, as in training: no graph breaks at torchao's functions or at the switch for evaluation."""
    torch._dynamo.reset()
    layer = nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 32))
    fp8.use_fp8([layer], "rowwise", emulate=True)
    row = torch.randn(24, 32)
    expected = {mode: layer.train(mode)(row) for mode in (True, False)}
    assert 1e-3 < (expected[True] - expected[False]).abs().max() < 0.2
    kernels.compile_layers([layer], backend="aot_eager")
    for mode, output in expected.items():
        torch.testing.assert_close(layer.train(mode)(row), output, atol=1e-6, rtol=0)
    torch._dynamo.reset()


@slow
def test_a_run_trains_in_8_bits_and_its_model_scores_as_it_was_evaluated(emulated, cli, tiny_run):
    keys = ("train.fp8=rowwise", "train.max_steps=30", "train.log_every=10", "train.peak_tflops=1")
    chosen = as_options(*keys)
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "-o", "run", *chosen)
    assert result.code == 0, result.stderr
    # The trimmed last layer runs at few positions, and stays.
    assert "FP8 (rowwise): 14 of 14 linear layers multiply in 8 bits while they train" in result.stderr
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert all("mfu" not in line and line["mfu_fp8"] == line["flops_per_s"] / 1e12 for line in logged)
    assert json.loads(Path("run/run.json").read_text())["kernels"] == {"train.fp8": "torchao 0.18.0"}
    evaluated = cli("evaluate", "run/model", tiny_run.data, "--json", "--format-bias", 0)
    assert evaluated.code == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)["sets"][0]["figures"]
    assert found["accuracy"] == lines[-1]["eval_accuracy"]
    assert found["mean_margin"] == pytest.approx(lines[-1]["eval_margin"], abs=1e-5)


def checked(*settings: str, device: torch.device = CUDA, processes: int = 1, capability=(9, 0), monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = resolve("tiny", (), ("train.fp8=rowwise", "train.kernels=compile", *settings)).config
    fp8.check_fp8(config, device, processes)


def test_what_cannot_run_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(fp8, "_torchao", lambda: None)
    for said, how in {
        r"train.fp8 = 'rowwise' is for CUDA, and the device is cpu": {"device": torch.device("cpu")},
        r"train.fp8 = 'rowwise' on 2 processes: not proven there": {"processes": 2},
        r"train.fp8 = 'rowwise' needs compute capability 8.9, and cuda has 8.0": {"capability": (8, 0)},
    }.items():
        with pytest.raises(ConfigError, match=said):
            checked(**how, monkeypatch=monkeypatch)
    with pytest.raises(ConfigError, match=r"with model.dtype = 'float32'"):
        checked("model.dtype=float32")
    with pytest.raises(ConfigError, match=r"with lora.r"):
        checked("lora.r=8")
    checked(monkeypatch=monkeypatch)
    assert capsys.readouterr().err == ""
    checked("train.kernels=torch", monkeypatch=monkeypatch)
    assert "rounding to 8 bits costs more than it saves" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"train.fp8: torchao cannot be imported"):
        checked(monkeypatch=monkeypatch)
    fp8.check_fp8(SimpleNamespace(train=SimpleNamespace(fp8="none")), CUDA, 1)
