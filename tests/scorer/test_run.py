"""Token groups to scores: the same however they are laid into forwards, and the numbers that evaluation sees."""

import json

import numpy as np
import pytest

from rmcli.model import batch, forward
from rmcli.packs.reader import PackedSplit
from rmcli.records import BatchKind, PreferenceGroup
from rmcli.scorer.load import configuration_of, load_encoder, load_scorer
from rmcli.scorer.run import Runner
from rmcli.scorer.scorer import Scorer
from rmcli.train.evaluate import evaluate
from rmcli.train.spread import Spread
from support.networks import random_group, tiny_model
from support.places import REPOSITORY

BEFORE = REPOSITORY / "tests" / "written_before"


@pytest.mark.parametrize("kind", ["packed", "single", "padded"])
def test_groups_of_any_size_have_the_scores_of_their_conversations(kind: BatchKind):
    generator = np.random.default_rng(0)
    sizes = [(20, [3, 5]), (0, [4]), (9, [12] * 6), (30, [20, 1]), (1, [2, 2, 2])]
    groups = [random_group(generator, prefix, lengths) for prefix, lengths in sizes]
    plain, network = (tiny_model("llama") for _ in range(2))
    plain.set_attn_implementation("sdpa")
    if kind != "packed":
        network.set_attn_implementation("sdpa")
    rows, done = [], []
    network.model.register_forward_pre_hook(
        lambda _, arguments, given: rows.append(given["input_ids"].numel()), with_kwargs=True
    )
    scores = Runner(network, kind, 0, "auto", capacity=50).run(groups, done.append)
    for group, values in zip(groups, scores, strict=True):
        alone = batch.build_single([group])
        assert values == pytest.approx(forward.scores(plain, alone).tolist(), abs=1e-5)
    assert sum(done) == len(groups)
    if kind == "packed":
        assert max(rows) <= 50
        assert len(rows) > 3  # 81 tokens of one group alone


def test_answers_that_are_alike_run_once():
    group = random_group(np.random.default_rng(0), 8, [5, 5])
    twice = type(group)(group.prefix, (*group.responses, group.responses[0].copy()), comparisons=())
    network = tiny_model("llama")
    rows: list[int] = []
    network.model.register_forward_pre_hook(
        lambda _, arguments, given: rows.append(given["input_ids"].numel()), with_kwargs=True
    )
    ((first, second, third),) = Runner(network, "packed", 0, "auto", 100).run([twice])
    assert first == third != second
    assert rows == [18]


@pytest.mark.parametrize("packed", ["true", "false"])
def test_the_evaluation_inside_training_sees_the_scores_of_rmcli_score(packed):
    config = configuration_of(BEFORE / "model", settings=[f"model.use_varlen_attn={packed}"]).config
    scorer = load_scorer(config, load_encoder(config))
    runner = scorer.runner
    split = PackedSplit(BEFORE / "data", "eval")
    figures = evaluate(runner.network, split, config, runner.pad_token_id, runner.kind, Spread()).figures
    rows = [json.loads(line) for line in (BEFORE / "data" / "eval.jsonl").read_text().splitlines()]
    chosen, rejected = (np.array(scores_of(scorer, rows, side)) for side in ("chosen", "rejected"))
    both = np.concatenate([chosen, rejected])
    assert figures["pairs"] == len(rows)
    assert figures["accuracy"] == np.mean(chosen > rejected)
    expected = {"margin": np.mean(chosen - rejected), "score_min": both.min(), "score_max": both.max()}
    expected["score_mean"] = both.mean()
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert np.ptp(both) > 0.1


def scores_of(scorer: Scorer, rows: list[dict], side: str) -> list[float]:
    groups = [PreferenceGroup(((*row["prompt"], *row[side]),), comparisons=()) for row in rows]
    return [score.value for (score,) in scorer.score_each(groups)]
