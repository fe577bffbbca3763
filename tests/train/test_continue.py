"""Training that begins with a reward model: its head, its tokens, data prepared for its base, its scores."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from rmcli.config.presets import presets_folder
from rmcli.config.resolve import resolve
from rmcli.config.sections import LossSection
from rmcli.errors import RmcliError
from rmcli.model.load import load_model
from rmcli.model.shipped_tokenizer import save_tokenizer
from rmcli.packs.manifest import read_manifest, write_manifest
from rmcli.parallel import world
from rmcli.ship.same_ids import ids_sha256
from rmcli.ship.template import exported_template
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer
from rmcli.train import proofs
from rmcli.train.job import build_job
from rmcli.train.run import run
from support.cli import Result, as_options
from support.foreign import make_foreign
from support.networks import random_group
from support.places import REPOSITORY, write_lines
from support.ranks import on_ranks

PAIRS = [{"prompt": f"Add {n} and 1", "chosen": str(n + 1), "rejected": str(n)} for n in range(24)]


def of_model(folder: Path, *settings: str) -> list[str]:
    return as_options(f"model.pretrained_model_name_or_path={folder}", *settings)


def going_on(cli: Any, data: Path, model: Path, out: str, *settings: str) -> Result:
    short = as_options("train.max_steps=1", "train.pairs_per_step=4", *settings)
    return cli("train", "-p", "tiny", "--data", data, "-o", out, *of_model(model), *short)


def prepared(cli: Any, model: Path, *options: str) -> Path:
    write_lines(Path("pairs.jsonl"), PAIRS)
    given = ("-p", "tiny", "--map-fn", "canonical", "--no-audit", "-o", "data", *of_model(model))
    result = cli("prepare", "pairs.jsonl", *given, *options)
    assert result.code == 0, result.stderr
    return Path("data")


def head_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["score.weight"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A classifier as on the Hub, without a reward token of its own."""
    return make_foreign(tmp_path / "foreign")


# --- the head, the tokens, the data ---


def test_the_head_of_an_exported_folder_is_kept_and_data_of_its_base_fit(cli, tiny_run):
    """`random_weights` and `head_lr` of the preset are for a new model. With a rate of nothing nothing moves."""
    result = going_on(cli, tiny_run.data, tiny_run.model, "run", "train.lr=1e-12")
    assert result.code == 0, result.stderr
    assert f"the head of {tiny_run.model} is kept: training goes on from a reward model" in result.stderr
    assert "the head that is kept scores -" in result.stderr
    assert torch.allclose(head_of(Path("run/model")), head_of(tiny_run.model), atol=1e-9)
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert first["accuracy"] > 0.7
    assert cli("train", "--resume", "-o", "run", *as_options("train.max_steps=2")).code == 0


def test_a_preset_gives_way_to_the_folder_and_the_folder_to_the_user(tiny_run, foreign, tmp_path):
    tiny = presets_folder() / "tiny"
    name = f"model.pretrained_model_name_or_path={tiny_run.model}"
    config = resolve("smollm2-135m", settings=[name]).config
    assert (config.model.reward_token, config.model.reward_token_id, config.train.head_lr) == (None, 4, None)
    assert resolve("smollm2-135m", settings=[name, "train.head_lr=1e-4"]).config.train.head_lr == 1e-4
    assert resolve("tiny", settings=[name]).config.model.random_weights is False
    assert resolve("tiny", settings=[name, "model.random_weights=true"]).config.model.random_weights is True
    other = [name, "model.reward_token=<pad>", "model.reward_token_id=none"]
    Path(tmp_path / "resolved.toml").write_text(resolve("tiny", settings=other).toml())
    again = resolve(None, [tmp_path / "resolved.toml"]).config.model  # which has no word for none
    assert (again.reward_token, again.reward_token_id) == ("<pad>", None)
    of_a_base = resolve("tiny", settings=[f"model.pretrained_model_name_or_path={tiny}"]).config.model
    assert (of_a_base.random_weights, of_a_base.reward_token_id) == (True, 4)
    public = resolve("tiny", settings=[f"model.pretrained_model_name_or_path={foreign}"])
    assert (public.config.model.reward_token, public.config.model.reward_token_id) == ("last", None)
    assert public.origins["model.reward_token"] == str(foreign / "config.json")


def test_a_classifier_from_elsewhere_goes_on_with_its_head(cli, foreign):
    result = going_on(cli, prepared(cli, foreign), foreign, "run", "train.lr=1e-12")
    assert result.code == 0, result.stderr
    assert torch.allclose(head_of(Path("run/model")), head_of(foreign), atol=1e-9)


def test_xtuners_layout_goes_on_with_its_head(cli, tiny_run):
    assert cli("export", tiny_run.run, "-o", "internlm2", "--format", "internlm2").code == 0
    result = going_on(cli, tiny_run.data, Path("internlm2"), "run", "train.lr=1e-12")
    assert result.code == 0, result.stderr
    assert "the head of internlm2 is kept" in result.stderr
    assert torch.allclose(head_of(Path("run/model")), head_of(tiny_run.model), atol=1e-9)


def test_random_weights_in_place_of_a_reward_model_are_said(cli, tiny_run):
    result = going_on(cli, tiny_run.data, tiny_run.model, "run", "model.random_weights=true")
    assert f"random_weights = true: head and weights of the reward model {tiny_run.model} are left" in result.stderr


def test_other_data_and_older_data_are_refused_as_before(cli, tiny_run, tmp_path):
    data = tmp_path / "old"
    shutil.copytree(tiny_run.data, data)
    old = {key: value for key, value in read_manifest(data).items() if key != "ids_sha256"}
    write_manifest(data, old)
    said = f"error: {data} was prepared for preset tiny with another chat template"
    assert said in going_on(cli, data, tiny_run.model, "run").stderr
    write_manifest(data, {**old, "ids_sha256": "another"})
    assert said in going_on(cli, data, tiny_run.model, "run").stderr


@pytest.mark.parametrize("mode", ["reserved", "natural", "last"])
@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_tokenizer_and_the_one_that_ships_write_the_same_ids(tmp_path, mode, adds_bos, end):
    tokenizer = AutoTokenizer.from_pretrained(presets_folder() / "tiny")
    tokenizer.chat_template += end
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 2)]
        )
    token, token_id = ("<|reserved_special_token_0|>", 4) if mode == "reserved" else ("<|im_end|>", 3)
    base = RewardTokenizer(tokenizer, token, token_id, 384, mode=mode)
    save_tokenizer(base, exported_template(base), tmp_path)
    shipped = AutoTokenizer.from_pretrained(tmp_path)
    there = RewardTokenizer(shipped, token, token_id, 384, mode=mode)
    assert ids_sha256(there) == ids_sha256(base)
    assert (there.fingerprint() == base.fingerprint()) == (mode == "last" and not adds_bos)
    shipped.chat_template = shipped.chat_template.replace("'role'", "'name'")
    assert ids_sha256(there) != ids_sha256(base)
    before = ids_sha256(base)
    tokenizer.add_tokens(["another"])
    assert ids_sha256(base) != before


# --- heads that are not ours ---


def with_weights(folder: Path, change: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("for_scoring", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda all: all.update({"v_head.weight": all.pop("score.weight")}), "is called v_head.weight, and would be"),
        (lambda all: all.update({"value_head.summary.bias": all.pop("score.weight")[0]}), "value_head.summary.bias"),
        (lambda all: all.update({"score.bias": torch.ones(1)}), "has score.bias beside score.weight: its scores"),
        (lambda all: all.update({"score.weight": torch.ones(3, 32)}), "(3, 32) in the weights .* 3 outputs"),
        (lambda all: all.pop("score.weight"), "score.weight"),
    ],
)
def test_a_head_that_would_be_lost_is_refused_in_one_line(foreign, change, said, for_scoring):
    section = resolve("tiny", settings=[f"model.pretrained_model_name_or_path={foreign}"]).config.model
    load_model(section, load_tokenizer(section), for_scoring=for_scoring)
    with_weights(foreign, change)
    with pytest.raises(RmcliError, match=said.replace("(3, 32)", r"\(3, 32\)")):
        load_model(section, load_tokenizer(section), for_scoring=for_scoring)


def test_a_base_with_parts_beside_its_layers_still_gets_a_new_head(foreign):
    """A language head and another part that is not used; the architecture is a language model's."""
    config = json.loads((foreign / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (foreign / "config.json").write_text(json.dumps(config))
    extra = {"lm_head.weight": torch.ones(384, 32), "model.vision.weight": torch.ones(2)}
    with_weights(foreign, lambda all: (all.pop("score.weight"), all.update(extra)))
    settings = [f"model.pretrained_model_name_or_path={foreign}", "model.random_weights=false"]
    section = resolve("tiny", settings=settings).config.model
    assert not load_model(section, load_tokenizer(section)).score.weight.any()


# --- scores outside the barrier ---


def test_scores_past_the_barrier_are_refused_with_the_ways(cli, foreign):
    data = prepared(cli, with_weights(foreign, lambda all: all["score.weight"].mul_(40)))
    result = going_on(cli, data, foreign, "run")
    assert result.code == 1
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: the model's scores reach ")
    assert "and the log barrier stands at loss.penalty_bound = 5: its penalty is " in error
    bound = hint.rpartition("-s ")[2]
    assert hint.startswith("hint: keep the scores as they are by -s loss.penalty_type=none, L2 or center, or by")
    for number, way in enumerate(("loss.penalty_type=none", "loss.penalty_type=L2", bound)):
        assert going_on(cli, data, foreign, f"run-{number}", way).code == 0, way
    # A run that was let begin goes on though its scores are outside.
    assert cli("train", "--resume", "-o", "run-2", *as_options("train.max_steps=2")).code == 0


def test_the_barrier_is_told_in_figures():
    """A score of 23 beside one of 17: the tangent past 4.999, and -log sigmoid(-6) for a pair the wrong way."""
    groups, loss = [random_group(np.random.default_rng(0), 2, (1, 1))], LossSection(loss_type="ranking")
    scores = torch.tensor([17.0, 23.0])
    with pytest.raises(RmcliError) as caught:
        proofs.inside_the_barrier(scores, groups, loss)
    at_edge, slope = -math.log(0.001) - math.log(9.999), 1000 - 1 / 9.999
    penalty = 0.02 * (2 * at_edge + slope * (17 - 4.999 + 23 - 4.999)) / 2
    assert caught.value.message == (
        "the model's scores reach 23 before step 1, and the log barrier stands at loss.penalty_bound = 5: "
        f"its penalty is {penalty:.3g} there, the pairs' loss 6"
    )
    assert (caught.value.hint or "").endswith("-s loss.penalty_bound=35")
    ways = ({"penalty_type": "L2"}, {"penalty_type": "center"}, {"penalty_weight": 0.0}, {"penalty_bound": 24.0})
    for fine in ways:
        proofs.inside_the_barrier(scores, groups, loss.model_copy(update=fine))
    proofs.inside_the_barrier(torch.tensor([4.9, -4.9]), groups, loss)


def refusal_of(folder: str, model: str, out: str) -> tuple[str, str]:
    """How a run that begins with this model ends on this process."""
    settings = (f"model.pretrained_model_name_or_path={model}", "train.max_steps=1", "train.pairs_per_step=4")
    job = build_job(resolve("tiny", (), settings), Path(folder), Path(out), processes=world.size())
    with pytest.raises(RmcliError) as caught:
        run(job)
    return type(caught.value).__name__, caught.value.message


@pytest.mark.slow
def test_of_several_processes_the_first_one_refuses(cli, foreign, tmp_path):
    data = prepared(cli, with_weights(foreign, lambda all: all["score.weight"].mul_(40)))
    first, second = on_ranks(2, refusal_of, str(data.absolute()), str(foreign), str(tmp_path / "run"))
    assert first[0] == "RmcliError"
    assert first[1].startswith("the model's scores reach ")
    assert second[0] == "FailedElsewhere"


@pytest.mark.slow
def test_the_documented_recipe_mends_what_it_is_for(tmp_path):
    """docs/continue.md has the figures of twice the rows."""
    script, report = REPOSITORY / "benchmarks" / "fix_up.py", tmp_path / "report.json"
    subprocess.run([sys.executable, script, "--rows", "2500", "--output", report], check=True, capture_output=True)
    accuracy = json.loads(report.read_text())["accuracy"]
    before, mended, alone = (accuracy[name] for name in ("before", "fix-ups and replay", "fix-ups alone"))
    assert before["square"] < 0.1
    assert mended["square"] > 0.9
    assert mended["others"] > alone["others"] + 0.05
