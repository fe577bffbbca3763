"""Exported and verified: every decoder that trains, in every way that it is loaded and batched."""

import json
from pathlib import Path

import pytest
import torch

from rmcli.config.resolve import resolve
from rmcli.model.load import label_for_reward
from rmcli.ship import golden, own, plain, verify
from rmcli.ship.export import Run, export
from rmcli.tokens.tokenizer import load_tokenizer
from support.exactness import tiny_network
from support.tiny_backbones import PACKED, SINGLE

LENGTH = 128  # of the tiny configs' positions
FROM_PADDING = {"beam", "biogpt", "gpt2", "gpt_bigcode", "gpt_neo", "recurrent_gemma"}
QUICK = ["gemma2", "gemma3_text", "gpt2", "llama"]


def architectures() -> list:
    names = sorted({*PACKED, *SINGLE})
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """`exported("llama", "model.reward_token=natural")`: a random network of it, exported and verified."""

    def in_process(folder, cases, by):
        cases, loaders = list(cases), (own.load_model, own.load_tokenizer, own.score) if by == "rmcli" else ()
        yield from zip([None, *cases], plain.measure(str(folder), cases, *loaders), strict=False)

    def make(name: str, *settings: str) -> verify.Verified:
        resolved = resolve("tiny", settings=[f"data.max_length={LENGTH}", *settings])
        reward = load_tokenizer(resolved.config.model)
        network = tiny_network(name, vocab_size=reward.num_embedding_rows)
        label_for_reward(network.config, name, reward)
        with torch.no_grad():
            for weight in network.base_model.parameters():
                weight.mul_(0.5 if weight.ndim > 1 else 1)
        export(Run(Path("none"), resolved.toml(), resolved.config, reward, []), network, tmp_path / "model")
        return verify.verify(tmp_path / "model")

    monkeypatch.setattr(verify, "answers", in_process)
    return make


@pytest.mark.parametrize("name", architectures())
def test_an_export_scores_as_its_network_in_the_whole_grid(exported, name):
    found = exported(name)
    assert found.first_failure is None, found.first_failure
    assert found.golden >= 5
    assert len(found.checks) == 3 + 8
    sides = [check for check in found.checks if check.note is not None and "padding" in check.note]
    assert bool(sides) == (name in FROM_PADDING)


@pytest.mark.parametrize(("mode", "ends_with"), [("natural", "<|im_end|>"), ("last", "\n")])
def test_the_mode_is_that_of_the_run(exported, tmp_path, mode, ends_with):
    found = exported("llama", f"model.reward_token={mode}", "model.reward_token_id=none")
    assert found.first_failure is None, found.first_failure
    assert json.loads((tmp_path / "model" / "config.json").read_text())["reward_mode"] == mode
    texts = [line["text"] for line in golden.read(tmp_path / "model")]
    assert len(texts) >= 5
    assert all(text.endswith(f"{ends_with}") for text in texts)
