"""Exported and verified: every decoder that trains, in every way that it is loaded and batched."""

from pathlib import Path

import pytest
import torch

from rmcli.config.resolve import resolve
from rmcli.model.load import label_for_reward
from rmcli.ship import own, plain, verify
from rmcli.ship.export import Run, export
from rmcli.tokens.tokenizer import load_tokenizer
from support.exactness import tiny_network
from support.tiny_backbones import PACKED, SINGLE

LENGTH = 128  # of the tiny configs' positions
FROM_PADDING = {"beam", "biogpt", "gpt2", "gpt_bigcode", "gpt_neo", "recurrent_gemma"}
QUICK = ["gemma2", "gemma3_text", "gpt2", "llama"]


def architectures() -> list:
    names = sorted({*PACKED, *SINGLE} - {"llama4_text"})  # transformers does not load the classifier made of that
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", architectures())
def test_an_export_scores_as_its_network_in_the_whole_grid(name, tmp_path, monkeypatch):
    def in_process(folder, cases, by):
        cases, loaders = list(cases), (own.load_model, own.load_tokenizer, own.score) if by == "rmcli" else ()
        yield from zip([None, *cases], plain.measure(str(folder), cases, *loaders), strict=False)

    monkeypatch.setattr(verify, "answers", in_process)
    resolved = resolve("tiny", settings=[f"data.max_length={LENGTH}"])
    reward = load_tokenizer(resolved.config.model)
    network = tiny_network(name, vocab_size=reward.num_embedding_rows)
    label_for_reward(network.config, name, reward)
    with torch.no_grad():
        for weight in network.base_model.parameters():
            weight.mul_(0.5 if weight.ndim > 1 else 1)
    export(Run(Path("none"), resolved.toml(), resolved.config, reward, []), network, tmp_path / "model")
    found = verify.verify(tmp_path / "model")
    assert found.first_failure is None, found.first_failure
    assert found.golden >= 5
    assert len(found.checks) == 3 + 8
    sides = [check for check in found.checks if check.note is not None and "padding" in check.note]
    assert bool(sides) == (name in FROM_PADDING)
