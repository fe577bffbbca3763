"""What `train` proves before step 1, and that each proof fails where its claim does not hold."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rmcli.config.sections import LossSection, TrainSection
from rmcli.errors import RmcliError
from rmcli.model import optim
from rmcli.model.batch import build_packed, build_padded, build_single
from rmcli.records import Comparison, TokenGroup
from rmcli.tokens.tokenizer import RewardTokenizer
from rmcli.train import proofs
from support.cli import as_options
from support.networks import random_group, tiny_model

REWARD = RewardTokenizer(tokenizer=None, reward_token="<reward>", reward_token_id=7, num_embedding_rows=97)
LN2 = math.log(2)


@pytest.fixture
def network():
    return tiny_model("llama")


def refused(*arguments, by) -> str:
    with pytest.raises(RmcliError) as raised:
        by(*arguments)
    assert "\n" not in raised.value.message
    assert raised.value.hint
    return raised.value.message


def test_it_is_said_in_one_line(cli, tiny_run, nano_data):
    packed = cli("train", "-p", "tiny", "--data", nano_data, "-o", "a", "-s", "train.max_steps=1")
    assert packed.code == 0, packed.stderr
    assert (
        "proven: packed rows exact; head finite, trainable, in the optimizer and in the checkpoint; "
        "scores read at <|reserved_special_token_0|>; first scores finite; "
        "first loss 0.6288, as a zero head's must be\n"
    ) in packed.stderr
    on = "model.pretrained_model_name_or_path=" + str(tiny_run.model)  # a trained head: no zero scores
    own = "model.tokenizer_name_or_path={presets}/tiny"
    settings = ("train.max_steps=1", "model.use_varlen_attn=false", on, own, "model.random_weights=false")
    options = as_options(*settings)
    trained = cli("train", "-p", "tiny", "--data", nano_data, "-o", "b", *options)
    assert trained.code == 0, trained.stderr
    (line,) = (line for line in trained.stderr.splitlines() if line.startswith("proven: "))
    assert line.startswith("proven: head finite, trainable, in the optimizer and in the checkpoint; scores read at ")
    assert re.search(r"; first scores finite; the head that is kept scores -\d\.\d\d to \d\.\d\d$", line)


def test_a_proof_that_fails_stops_the_run_before_step_1(cli, nano_data, monkeypatch):
    monkeypatch.setattr(proofs, "objective", lambda *_: (torch.tensor(0.5), torch.tensor(0.0)))
    result = cli("train", "-p", "tiny", "--data", nano_data, "-o", "a")
    assert result.code == 1
    assert (
        "error: the first loss of a zero head is 0.500000, and by hand 0.628770 (ranking, log_barrier)"
        in result.stderr
    )
    assert (Path("a") / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_head_that_is_not_finite(network, value):
    proofs.head_is_sound(network)
    network.score.weight.data[0, 3] = value
    assert "is not finite" in refused(network, by=proofs.head_is_sound)


def test_a_head_that_takes_no_gradient(network):
    network.score.weight.requires_grad_(False)
    assert "takes no gradient" in refused(network, by=proofs.head_is_sound)


@pytest.mark.parametrize("optimizer_name", ["adamw", "adamw_8bit"])
def test_a_weight_that_the_optimizer_lacks_or_has_twice(network, optimizer_name):
    train = TrainSection(optimizer=optimizer_name)
    optimizer = optim.build_optimizer(network, network.score, train)
    proofs.every_weight_is_trained(network, optimizer)
    head = optimizer.param_groups[-1]
    optimizer.param_groups[0]["params"].append(head["params"][0])
    assert "score.weight is 2 times in" in refused(network, optimizer, by=proofs.every_weight_is_trained)
    optimizer.param_groups[0]["params"].pop()
    head["peak_lr"] = 0.0
    assert "score.weight is 0 times in" in refused(network, optimizer, by=proofs.every_weight_is_trained)
    head["peak_lr"] = 1e-3
    norms = next(group for group in optimizer.param_groups if group["params"][0].ndim < 2)
    norms["params"].pop()
    assert "norm.weight is 0 times in" in refused(network, optimizer, by=proofs.every_weight_is_trained)


@pytest.mark.parametrize("build", [build_packed, build_single, lambda groups: build_padded(groups, 0)])
def test_a_score_read_at_another_token(generator, build):
    groups = [random_group(generator, 5, (3, 4)), random_group(generator, 2, (6, 1))]
    for group in groups:
        for response in group.responses:
            response[-1] = REWARD.reward_token_id
    proofs.scored_at_the_reward_token(build(groups), REWARD)
    groups[1].responses[0][-1] = 9
    said = refused(build(groups), REWARD, by=proofs.scored_at_the_reward_token)
    assert said == "1 of 4 scores of the first forward are read at another token than <reward> (7), first 9"


def test_scores_that_are_not_finite():
    proofs.finite(torch.tensor([0.0, 1.0]))
    assert refused(torch.tensor([0.0, math.nan, math.inf]), by=proofs.finite).startswith("2 of 3 scores")


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def group_of(generator, responses: int, *comparisons: Comparison, **values) -> TokenGroup:
    return random_group(generator, 2, (1,) * responses, comparisons=comparisons, **values)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"loss_type": "ranking", "label_smoothing": 0.1, "penalty_type": "L2"}, LN2),
        ({"loss_type": "focal", "penalty_type": "none"}, LN2),
        ({"loss_type": "ranking", "penalty_type": "center"}, LN2),
        ({"loss_type": "focal", "penalty_weight": 0.5, "penalty_bound": 2.0}, LN2 - 0.5 * 2 * math.log(2)),
        # By weights 1 and 3: a margin of 2, and a tie: softplus(2), and (softplus(0) + softplus(0)) / 2 = ln 2.
        ({"loss_type": "margin", "penalty_weight": 0.0}, (2.1269280110429727 + 3 * LN2) / 4),
        ({"loss_type": "margin", "margin_scale": 0.0, "penalty_weight": 0.0}, LN2),
        # t = ln 2: a win is ln 3, a tie 2 ln 3 - ln(4 - 1) = ln 3.
        ({"loss_type": "ties", "penalty_weight": 0.0}, math.log(3)),
        ({"loss_type": "ties", "tie_threshold": 1.0, "penalty_weight": 0.0}, None),
        ({"loss_type": "plackett_luce", "penalty_weight": 0.0}, None),
    ],
)
def test_the_loss_of_zero_scores_by_hand_is_that_of_the_objective(generator, loss, expected):
    section = LossSection(**loss)
    win, tie = (
        group_of(generator, 2, Comparison(0, 1, margin=2.0)),
        group_of(generator, 2, Comparison(0, 1, 0.5), weight=3.0),
    )
    order = [Comparison(first, second) for first in range(3) for second in range(first + 1, 3)]
    ranked = group_of(generator, 3, *order, ordered=True)
    groups = {"focal": [win], "plackett_luce": [win, ranked]}.get(section.loss_type, [win, tie])
    by_hand = proofs.loss_of_zero_scores(groups, section)
    if expected is not None:
        assert by_hand == pytest.approx(expected, rel=1e-12)
    elif section.loss_type == "plackett_luce":
        assert by_hand == pytest.approx((math.log(2) + math.log(6)) / 2, rel=1e-12)
    scores = torch.zeros(sum(len(group.responses) for group in groups))
    assert proofs.first_loss_is_analytic(scores, groups, section) == by_hand
    scores[0] += 0.01  # a score that is not the zero head's
    assert "by hand" in refused(scores, groups, section, by=proofs.first_loss_is_analytic)
