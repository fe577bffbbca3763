"""`[[eval.sets]]`: what a set must be, its figures beside those of the pairs held out, what a run leaves of them."""

import errno
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nano_run import lines, settings
from rmcli.config.resolve import resolve
from rmcli.config.sections_of_evaluation import FIGURES
from rmcli.errors import ConfigError
from rmcli.packs.manifest import read_manifest
from rmcli.records import Comparison
from rmcli.train import evaluate as evaluation
from rmcli.train import evaluation_files
from rmcli.train.evaluated import EvaluatedSet, each_row_once
from rmcli.train.scored import Scored
from support.cli import Result, run_cli
from support.places import write_lines

STEPS = ("train.pairs_per_step=16", "train.max_steps=4", "train.eval_steps=2", "train.log_every=4")
ROWS = {
    "short": [{"prompt": f"Say {n}", "chosen": "yes " * (1 + n % 3), "rejected": "no"} for n in range(12)],
    "long": [{"prompt": f"Tell {n}", "chosen": "no", "rejected": "yes " * 30} for n in range(6)],
    "ranked": [{"prompt": f"Rank {n}", "responses": ["a", "b b", "c"], "ranks": [1, 2, 2]} for n in range(4)],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, nano, nano_data) -> Path:
    """`data`, 90 pairs to train on; `more`: a set of three sources, some held out; `run`: evaluated on both."""
    folder = tmp_path_factory.mktemp("sets")
    shutil.copytree(nano_data, folder / "data")
    sources = []
    for name, rows in ROWS.items():
        write_lines(folder / f"{name}.jsonl", rows)
        sources += ["--source", f"path={folder / name}.jsonl,name={name}"]
    prepared(nano, folder / "more", *sources)
    keys = of_run(nano, f"eval.sets=[{{name='more',path='{folder / 'more'}'}},{SAME.format(folder)}]")
    result = run_cli("train", "-p", "tiny", "--data", folder / "data", "-o", folder / "run", *keys)
    assert result.code == 0, result.stderr
    (folder / "said").write_text(result.stderr)
    return folder


SAME = "{{name='same',path='{0}/data'}}"


def prepared(nano: Path, folder: Path, *options: str, keys: tuple[str, ...] = ("data.eval_fraction=0.6",)) -> None:
    own = settings(f"model.pretrained_model_name_or_path={nano}", "data.max_packed_length=512", *keys)
    result = run_cli("prepare", "-p", "tiny", "--no-audit", "-o", folder, "--map-fn", "canonical", *options, *own)
    assert result.code == 0, result.stderr


def of_run(nano: Path, *keys: str) -> list[str]:
    return settings(f"model.pretrained_model_name_or_path={nano}", *STEPS, *keys)


@pytest.fixture
def train(cli, nano, place) -> Callable[..., Result]:
    """`train("run", "train.lr=1e-3")` in an empty folder that has `data` and `more`."""
    for name in ("data", "more"):
        shutil.copytree(place / name, name)
    return lambda out, *keys: cli("train", "-p", "tiny", "--data", "data", "-o", out, *of_run(nano, *keys))


@pytest.fixture
def plan(cli, nano, train) -> Callable[..., Result]:
    """The same, but nothing is trained."""
    return lambda *keys: cli("train", "-p", "tiny", "--data", "data", "-n", "-q", *of_run(nano, *keys))


def evaluations(run: Path) -> list[dict]:
    return [line for line in lines(run) if "eval_more_loss" in line or "eval_loss" in line]


# --- figures ---


def test_every_evaluation_has_the_same_figures_of_each_set(place):
    assert [line["step"] for line in evaluations(place / "run")] == [2, 4]
    for line in evaluations(place / "run"):
        for start in ("eval_", "eval_more_", "eval_same_"):
            there = {figure for figure in FIGURES if start + figure in line}
            gone = {f"{side}_accuracy" for side in ("shorter", "longer") if not line[f"{start}{side}_pairs"]}
            assert there == FIGURES.keys() - gone
        assert len(line) == 1 + len([key for key in line if key.startswith("eval_")])


def test_one_set_under_two_names_has_one_value_of_each_figure(place):
    for line in evaluations(place / "run"):
        held_out = {figure: line[f"eval_{figure}"] for figure in FIGURES if f"eval_{figure}" in line}
        assert held_out == {figure: line[f"eval_same_{figure}"] for figure in held_out}


def test_a_set_changes_no_bit_of_the_run_or_of_the_figures_before_it(place, train):
    assert train("alone").code == 0
    named = ("eval_more_", "eval_same_")
    for alone, beside in zip(lines("alone"), lines(place / "run"), strict=True):
        assert alone == {key: value for key, value in beside.items() if not key.startswith(named)}
    name = Path("model/model.safetensors")
    assert ("alone" / name).read_bytes() == (place / "run" / name).read_bytes()


def test_each_set_has_a_line_on_the_terminal(place):
    said = (place / "said").read_text()
    last = evaluations(place / "run")[-1]
    for title, start in (("held-out", "eval_"), ("more", "eval_more_")):
        accuracy, loss, margin = (last[f"{start}{figure}"] for figure in ("accuracy", "loss", "margin"))
        assert (
            f"step 4: {title} accuracy {accuracy:.3f}, loss {loss:.4f}, margin {margin:.3f}, "
            f"{last[f'{start}pairs']} pairs\n"
        ) in said


def test_the_plan_counts_the_pairs_of_each_set(train, cli, nano):
    keys = of_run(nano, "eval.sets=[{name='more',path='more'},{name='all',path='more',split='train'}]")
    plan = json.loads(cli("train", "-p", "tiny", "--data", "data", "-n", "--json", *keys).stdout)["plan"]
    splits = read_manifest(Path("more"))["splits"]
    assert (plan["eval_more_pairs"], plan["eval_all_pairs"]) == (
        splits["eval"]["num_groups"],
        splits["train"]["num_groups"],
    )


def test_groups_of_which_the_loss_tells_nothing_are_counted(nano, train):
    rows = [{"prompt": f"Say {n}", "responses": ["a", "b"], "scores": [1, 1]} for n in range(4)]
    write_lines(Path("ties.jsonl"), [*rows, *ROWS["short"]])
    prepared(nano, Path("ties"), "ties.jsonl", keys=("data.eval_fraction=0.0",))
    ties = "eval.sets=[{name='ties',path='ties',split='train'}]"
    result = train("run", "loss.loss_type=focal", "train.max_steps=1", ties)
    assert "note: ties: 4 of 16 groups are not evaluated: focal tells nothing of them\n" in result.stderr
    assert evaluations(Path("run"))[-1]["eval_ties_pairs"] == 12
    (ties,) = [one for one in told(Path("run"))["sets"] if one["name"] == "ties"]
    assert (ties["lines"], ties["errors"]) == (16, {"not_of_the_loss": 4})


def test_a_pack_that_a_forward_of_this_run_cannot_hold_is_cut(nano, train, monkeypatch):
    """The set was packed to 4096 tokens, the run to 512."""
    prepared(
        nano, Path("wide"), "tasks:80", "--overwrite", keys=("data.eval_fraction=0.9", "data.max_packed_length=4096")
    )
    sizes, real = [], evaluation.run_forward

    def seen(network, groups, *rest):
        sizes.append(sum(group.num_tokens for group in groups))
        return real(network, groups, *rest)

    monkeypatch.setattr(evaluation, "run_forward", seen)
    assert train("run", "train.max_steps=1", "eval.sets=[{name='wide',path='wide'}]").code == 0
    assert sum(sizes) > 1500
    assert max(sizes) <= 512


# --- what a run leaves ---


def told(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def margins(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "eval_margins.jsonl").read_text().splitlines()]


def test_metrics_json_says_what_the_last_evaluation_was(place):
    found, last = told(place / "run"), evaluations(place / "run")[-1]
    assert found["kind"] == "rmcli evaluation"
    assert found["run"] == {"path": str(place / "run"), "name": "tiny", "step": 4}
    assert (found["against"], found["against_sha256"], found["suites"]) == (None, None, [])
    assert found["model"] == str(place / "run" / "model")
    assert len(found["model_sha256"]) == 64
    assert [one["name"] for one in found["sets"]] == ["held-out", "more", "same"]
    for one, start in zip(found["sets"], ("eval_", "eval_more_", "eval_same_"), strict=True):
        figures = one["figures"]
        assert figures["pairs"] == last[f"{start}pairs"]
        assert figures["accuracy"] == pytest.approx(last[f"{start}accuracy"], abs=1e-7)
        assert figures["mean_margin"] == pytest.approx(last[f"{start}margin"], abs=1e-6)
        assert figures["calibration"]["ece"] == last[f"{start}ece"]
        assert figures["length"]["spearman"] == last[f"{start}length_spearman"]
        assert one["format_bias"] == []
        assert one["against"] is None
    conversations = sum(2 for one in margins(place / "run")) - one_conversation_twice(place)
    assert found["conversations"] == conversations


def one_conversation_twice(place: Path) -> int:
    """A ranked group of three has two comparisons, of three answers."""
    ranked = {one["row_id"] for one in margins(place / "run") if one["set"] == "more" and one["row_id"] >= 18}
    return len(ranked)


def test_it_is_told_by_source_and_by_length(place):
    (more,) = [one for one in told(place / "run")["sets"] if one["name"] == "more"]
    assert {one["value"] for one in more["by"]["source"]} == {"short", "long", "ranked"}
    assert sum(one["pairs"] for one in more["by"]["source"]) == more["figures"]["pairs"]
    assert sum(one["pairs"] for one in more["by"]["length_difference"]) == more["figures"]["pairs"]
    of_long = next(one for one in more["by"]["source"] if one["value"] == "long")
    below = [one for one in more["by"]["length_difference"] if one["value"].split(" to ")[-1] in ("-50", "-10")]
    assert sum(one["pairs"] for one in below) == of_long["pairs"]
    assert more["by"]["turns"] == []


def test_the_worst_pairs_are_texts(place):
    (more,) = [one for one in told(place / "run")["sets"] if one["name"] == "more"]
    worst = more["worst"]
    of_set = sorted(one["margin"] for one in margins(place / "run") if one["set"] == "more")
    assert [one["margin"] for one in worst] == of_set[:20]
    for one in worst:
        assert one["margin"] == one["chosen_score"] - one["rejected_score"]
        row = int(one["where"].rpartition("row ")[2])
        assert one["where"] == f"{place / 'more'}, row {row}"
        source = [*ROWS["short"], *ROWS["long"], *ROWS["ranked"]][row]
        assert source["prompt"] in one["prompt"]
        if "chosen" in source:
            assert source["chosen"].strip() in one["prompt"] + one["chosen"]
            assert source["rejected"].strip() in one["prompt"] + one["rejected"]
            assert source["chosen"].strip() not in one["rejected"]


def test_margins_are_of_each_comparison_in_order_of_rows(place):
    last = evaluations(place / "run")[-1]
    for name, start in (("held-out", "eval_"), ("more", "eval_more_"), ("same", "eval_same_")):
        of_set = [one for one in margins(place / "run") if one["set"] == name]
        assert len(of_set) == last[f"{start}pairs"]
        assert [one["row_id"] for one in of_set] == sorted(one["row_id"] for one in of_set)
        assert np.mean([one["margin"] for one in of_set]) == pytest.approx(last[f"{start}margin"], abs=1e-6)
    ranked = [(one["first"], one["second"]) for one in margins(place / "run") if one["row_id"] >= 18]
    assert set(ranked) == {(0, 1), (0, 2)}


def test_a_full_disk_costs_the_file_and_not_the_model(train, monkeypatch):
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(evaluation_files, "write_whole", full)
    result = train("run")
    assert result.code == 0, result.stderr
    assert (
        "note: run/metrics.json and eval_margins.jsonl are not written: [Errno 28] No space left on device"
        in result.stderr
    )
    assert Path("run/model/model.safetensors").is_file()
    assert not Path("run/metrics.json").exists()


@pytest.mark.slow
def test_whatever_goes_wrong_with_the_files_costs_no_model(train, monkeypatch):
    monkeypatch.setattr(evaluation_files, "worst_of", lambda *_: 1 / 0)
    result = train("other")
    assert result.code == 0, result.stderr
    assert "note: other/metrics.json and eval_margins.jsonl are not written: division by zero" in result.stderr
    assert Path("other/model/model.safetensors").is_file()


def test_a_row_that_a_split_holds_several_times_counts_once():
    def scored(source: int, row: int, score: float) -> Scored:
        return Scored(source, row, (score, 0.0), (2, 2), (Comparison(0, 1),))

    held = [scored(0, 1, 1.0), scored(0, 1, 1.5), scored(0, 2, 2.0), scored(1, 2, 3.0)]
    once = each_row_once(EvaluatedSet(None, {}, held, 1.0))  # type: ignore[arg-type]
    assert [(one.source_id, one.row_id, one.scores[0]) for one in once.scored] == [
        (0, 1, 1.0),
        (0, 2, 2.0),
        (1, 2, 3.0),
    ]
    assert once.num_repeated == 1


def test_without_pairs_there_is_no_file(nano, train, cli):
    prepared(nano, Path("none"), "tasks:40", keys=("data.eval_fraction=0.0",))
    none = ("train", "-p", "tiny", "--data", "none", *of_run(nano, "train.max_steps=1"))
    assert cli(*none, "-o", "run").code == 0
    assert not Path("run/metrics.json").exists()
    assert cli(*none, "-o", "other", *settings(MORE)).code == 0
    assert [one["name"] for one in told(Path("other"))["sets"]] == ["more"]


MORE = "eval.sets=[{name='more',path='more'}]"


def test_scores_that_are_not_finite_are_said_once_and_have_no_figures(train, monkeypatch):
    real, seen = evaluation.run_forward, []

    def bad(network, groups, *rest):
        seen.append(len(groups))
        scores_S = real(network, groups, *rest)
        return scores_S * float("inf") if any(group.source_id == 1 for group in groups) else scores_S

    monkeypatch.setattr(evaluation, "run_forward", bad)
    result = train("run", MORE, "train.best=eval_more_ece")
    assert result.code == 0, result.stderr
    assert result.stderr.count("scores of more are not finite: their calibration is not told (null)") == 1
    assert result.stderr.count("eval_more_ece is no number") == 1
    for line in evaluations(Path("run")):
        assert line["eval_more_ece"] is None
        assert line["eval_more_temperature"] is None
        assert math.isfinite(line["eval_ece"])
    (more,) = [one for one in told(Path("run"))["sets"] if one["name"] == "more"]
    assert (more["figures"], more["by"], more["worst"]) == ({}, {}, [])
    assert {one["margin"] for one in margins(Path("run")) if one["set"] == "more"} >= {None}
    assert not Path("run/model-best").exists()


# --- best ---


@pytest.mark.slow
def test_the_best_evaluation_can_be_told_by_a_set(train):
    assert train("run", MORE, "train.best=eval_more_log_loss", "train.eval_steps=1", "train.lr=0.3").code == 0
    losses = {line["step"]: line["eval_more_log_loss"] for line in evaluations(Path("run"))}
    best = min(losses, key=losses.__getitem__)
    assert Path(f"run/checkpoints/best-step-{best}").is_dir()
    assert f"step {best}" in Path("run/model-best/README.md").read_text()


TOLD = "loss, pair_loss, accuracy, margin, shorter_accuracy, longer_accuracy, ece, brier, log_loss"


@pytest.mark.parametrize(
    ("best", "sets", "message"),
    [
        ("accuracy", "", f"'accuracy' is no figure: there is eval_FIGURE; FIGURE is one of {TOLD}"),
        (
            "eval_hard_accuracy",
            "{name='easy',path='x'},{name='b',path='y'}",
            "'eval_hard_accuracy' is no figure: there is eval_FIGURE, or eval_NAME_FIGURE of a set: NAME is one of "
            f"easy, b; FIGURE is one of {TOLD}",
        ),
        ("eval_temperature", "", "'eval_temperature': neither more nor less of it is better"),
        ("eval_a_penalty", "{name='a',path='x'}", "'eval_a_penalty': neither more nor less of it is better"),
    ],
)
def test_what_is_no_figure_of_an_evaluation_is_refused(best, sets, message):
    with pytest.raises(ConfigError) as error:
        resolve("tiny", settings=(f"train.best={best}", f"eval.sets=[{sets}]"))
    assert error.value.message == f"train.best = {message}"


# --- what a set must be ---


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("{name='a b',path='x'}", "name = 'a b': a set's name has letters, digits, _ and - only"),
        ("{name='a',path='x'},{name='a',path='y'}", "two sets have the name 'a'"),
        ("{name='accuracy',path='x'}", "name = 'accuracy' is what rmcli calls something of its own: choose another"),
        ("{name='held-out',path='x'}", "name = 'held-out' is what rmcli calls something of its own: choose another"),
        (
            "{name='shorter',path='x'}",
            "name = 'shorter': its eval_shorter_accuracy would be that of the pairs held out: choose another",
        ),
        (
            "{name='a',path='x'},{name='a_longer',path='x'}",
            "name = 'a_longer': its eval_a_longer_accuracy would be that of the set 'a': choose another",
        ),
    ],
)
def test_names_are_told_apart(sets, message):
    with pytest.raises(ConfigError) as error:
        resolve("tiny", settings=(f"eval.sets=[{sets}]",))
    assert error.value.message == f"[eval.sets] {message}" or error.value.message == f"[eval] {message}"


def test_an_unknown_key_of_a_set_is_answered():
    with pytest.raises(ConfigError) as error:
        resolve("tiny", settings=("eval.sets=[{name='a',path='x',spilt='train'}]",))
    assert (error.value.message, error.value.hint) == (
        "unknown key eval.sets[0].spilt (--set eval.sets)",
        "did you mean split?",
    )


def test_tables_of_a_file_are_sets_and_come_back_as_they_were(tmp_path):
    path = tmp_path / "sets.toml"
    path.write_text("[[eval.sets]]\nname = 'a'\npath = 'x'\n[[eval.sets]]\nname = 'b'\npath = 'y'\nsplit = 'train'\n")
    resolved = resolve("tiny", (path,))
    assert [(one.name, one.path, one.split) for one in resolved.config.eval.sets] == [
        *(("a", "x", "eval"), ("b", "y", "train"))
    ]
    (tmp_path / "again.toml").write_text(resolved.toml())
    assert resolve(None, (tmp_path / "again.toml",)).config == resolved.config


def refused(result: Result, code: int, error: str, hint: str) -> None:
    assert (result.code, result.stderr) == (code, f"error: {error}\nhint: {hint}\n")


def test_a_folder_that_is_no_set_is_refused(plan):
    result = plan("eval.sets=[{name='a',path='nowhere'}]")
    refused(result, 1, "eval set a: nowhere holds no prepared data: no manifest.json", "run rmcli prepare -o DIR")


def test_an_empty_split_is_refused_and_the_other_named(nano, plan):
    write_lines(Path("short.jsonl"), ROWS["short"])
    prepared(nano, Path("none"), "short.jsonl", keys=("data.eval_fraction=0.0",))
    refused(
        plan("eval.sets=[{name='a',path='none'}]"),
        1,
        "eval set a: the split eval of none is empty",
        'name the other one beside its path: split = "train"',
    )
    assert plan("eval.sets=[{name='a',path='none',split='train'}]").code == 0


def test_a_conversation_that_is_too_long_is_refused(nano, plan):
    write_lines(Path("long.jsonl"), [{"prompt": "so " * 400, "chosen": "yes", "rejected": "no"}])
    longer = ("data.eval_fraction=0.0", "data.max_length=512", "data.max_packed_length=2048")
    prepared(nano, Path("long"), "long.jsonl", keys=longer)
    result = plan("eval.sets=[{name='a',path='long',split='train'}]")
    assert result.code == 2
    assert "error: eval set a: long has a conversation of " in result.stderr
    assert " tokens, and this run takes 256 (data.max_length)\n" in result.stderr
    assert "hint: prepare it again with -s data.max_length=256\n" in result.stderr


def test_other_tokens_are_refused(nano, plan):
    write_lines(Path("short.jsonl"), ROWS["short"])
    keys = ("data.eval_fraction=0.5", "model.chat_template=plain")
    prepared(nano, Path("plain"), "short.jsonl", keys=keys)
    result = plan("eval.sets=[{name='a',path='plain'}]")
    assert result.code == 1
    assert "error: eval set a: plain was prepared for preset tiny with another chat template than" in result.stderr


def test_damage_is_found_before_a_weight_is_loaded(plan):
    (shard,) = Path("more/eval").glob("*.arrow")
    shard.write_bytes(shard.read_bytes()[:-1])
    result = plan(MORE)
    assert result.code == 1
    assert f"error: eval set more: {shard} is damaged: sha256 " in result.stderr


def test_a_set_that_tells_the_loss_nothing_is_refused(nano, plan):
    write_lines(Path("t.jsonl"), [{"prompt": "Say", "responses": ["a", "b"], "scores": [1, 1]}])
    prepared(nano, Path("ties"), "t.jsonl", keys=("data.eval_fraction=0.0",))
    result = plan("loss.loss_type=focal", "eval.sets=[{name='a',path='ties',split='train'}]")
    assert "error: eval set a: loss.loss_type = focal tells nothing of the 1 groups of ties\n" in result.stderr


# --- going on ---


@pytest.fixture(scope="module")
def stopped(place, nano) -> Path:
    """A run of two steps, evaluated on `more`, which it names by a path from its working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        keys = of_run(nano, MORE, "train.max_steps=2")
        result = run_cli("train", "-p", "tiny", "--data", "data", "-o", "half", *keys)
    assert result.code == 0, result.stderr
    return place / "half"


@pytest.fixture
def half(stopped, train) -> Path:
    """A copy beside its data."""
    shutil.copytree(stopped, "run")
    return Path("run")


LONGER = ("train", "--resume", "-o", "run", "-s", "train.max_steps=4")


def test_other_content_under_the_same_name_is_refused(half, cli, nano):
    before = read_manifest(Path("more"))["manifest_sha256"]
    shutil.rmtree("more")
    write_lines(Path("short.jsonl"), ROWS["short"])
    prepared(nano, Path("more"), "short.jsonl")
    now = read_manifest(Path("more"))["manifest_sha256"]
    refused(
        cli(*LONGER),
        2,
        f"eval set more is eval of {now}, but run/checkpoints/step-2 was evaluated on eval of {before}",
        "give the new set another name: figures of one name are of one set",
    )
    other = cli(*LONGER, "-s", "eval.sets=[{name='new',path='more'}]")
    assert other.code == 0, other.stderr
    result = json.loads((half / "run.json").read_text())["result"]
    assert ("eval_new_loss" in result, "eval_more_loss" in result) == (True, False)  # of step 2
    assert [("eval_more_loss" in line, "eval_new_loss" in line) for line in evaluations(half)] == [
        *((True, False), (False, True))
    ]
    back = cli("train", "--resume", "-o", "run", "-s", "train.max_steps=5", "-s", MORE)
    assert f"eval set more is eval of {now}, but" in back.stderr


def test_another_split_is_other_content(half, cli):
    result = cli(*LONGER, "-s", "eval.sets=[{name='more',path='more',split='train'}]")
    assert result.code == 2
    assert "error: eval set more is train of " in result.stderr


def test_the_same_set_elsewhere_goes_on(half, cli):
    Path("more").rename("moved")
    result = cli(*LONGER, "-n", "-s", "eval.sets=[{name='more',path='moved'}]")
    assert result.code == 0, result.stderr


def test_from_another_working_folder_it_is_found(half, cli):
    shutil.rmtree("more")
    result = cli(*LONGER)
    assert result.code == 0, result.stderr
    assert [line["step"] for line in evaluations(half)] == [2, 4]
