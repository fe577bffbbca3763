"""Our figures against RewardBench's own code, which is installed in an environment of its own, on the same scores.

The package's module of these functions imports FastChat and its model zoo; the functions themselves need numpy,
pandas and datasets. So they are taken from its file by name and run alone, here.

The package 0.1.4 differs from its repository of later (05a9005, whose rule we follow) where the spread of a tied
prompt is 0: it leaves such a prompt out of its last mean. So the made-up scores have none, and
test_suite_reward_bench_2.py has these cases by hand.
"""

import ast
import math
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from rmcli.evaluate.suites.reward_bench import REWARD_BENCH, SECTIONS, WEIGHTS
from rmcli.evaluate.suites.reward_bench_2 import REWARD_BENCH_2
from rmcli.evaluate.suites.suite import Asked, Judgement
from support.places import REPOSITORY, missing

pytestmark = pytest.mark.slow

FUNCTIONS = {"calculate_scores_per_section", "reroll_and_score_dataset", "sample_stats", "process_single_model"}


@pytest.fixture(scope="module")
def package() -> Path:
    folders = list(REPOSITORY.glob(".venv-old/lib/python*/site-packages"))
    if not folders or not (folders[0] / "rewardbench").is_dir():
        missing("the environment .venv-old (make .venv-old/.installed)")
    assert (folders[0] / "rewardbench-0.1.4.dist-info").is_dir()
    return folders[0] / "rewardbench"


@pytest.fixture(scope="module")
def functions(package) -> dict[str, Any]:
    tree = ast.parse((package / "utils.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS]
    names: dict[str, Any] = {"np": np, "pd": pd, "math": math, "Dataset": datasets.Dataset}
    exec(compile(tree, "rewardbench/utils.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def constants(package) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec((package / "constants.py").read_text(encoding="utf-8"), names)
    return names


def pairs(generator: random.Random, subsets: list[str]) -> list[Judgement]:
    """Up to nine rows of each subset, of which some have equal scores."""
    return [
        (Asked(name, name), [float(generator.randint(0, 4)), float(generator.randint(0, 4))])
        for name in subsets
        for _ in range(generator.randint(1, 9))
    ]


def fours(generator: random.Random, subset: str, rows: int) -> list[Judgement]:
    """The best of four, often several of them."""
    return [(Asked(subset, subset), [float(generator.randint(0, 2)) for _ in range(4)]) for _ in range(rows)]


def ties(generator: random.Random, prompts: int) -> list[Judgement]:
    """Each prompt asked both ways, with 2 to 6 right answers of different scores, some above all wrong ones."""
    rows = []
    for number in range(prompts):
        for kind, right in (("ref", 1), ("tied", generator.randint(2, 6))):
            shift = generator.uniform(0, 4)
            scores = [generator.uniform(-1, 1) + shift for _ in range(right)]
            scores += [generator.uniform(-1, 1) for _ in range(generator.randint(1, 9))]
            rows.append((Asked("Ties", "Ties", right, f"{kind}:{number}"), scores))
    generator.shuffle(rows)
    return rows


def test_subsets_sections_and_weights_are_those_of_the_package(constants):
    assert constants["EXAMPLE_COUNTS"] == WEIGHTS
    assert constants["SUBSET_MAPPING"] == {name: list(parts) for name, parts in SECTIONS.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("subsets", [23, 12])
def test_sections_score_as_in_the_package(functions, constants, seed, subsets):
    generator = random.Random(seed)
    figures = REWARD_BENCH.rules(pairs(generator, generator.sample(list(WEIGHTS), subsets)))
    accuracies = {name: of["accuracy"] for name, of in figures["subsets"].items() if of["rows"]}
    assert len(accuracies) == subsets
    expected = functions["calculate_scores_per_section"](
        constants["EXAMPLE_COUNTS"], constants["SUBSET_MAPPING"], accuracies
    )
    # a section without rows is 0 there, and none here
    found = {name: section["score"] or 0 for name, section in figures["sections"].items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(set(found.values())) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_four_scores_as_in_the_package(functions, seed):
    judged = fours(random.Random(seed), "Math", 60)
    flat = [
        {"text": str(answer), "scores": score, "row": row}
        for row, (_, scores) in enumerate(judged)
        for answer, score in enumerate(scores)
    ]
    rerolled = functions["reroll_and_score_dataset"](datasets.Dataset.from_list(flat), [4] * len(judged))
    expected = sum(rerolled["results"]) / len(judged)
    assert REWARD_BENCH_2.rules(judged)["subsets"]["Math"]["score"] == pytest.approx(expected, abs=1e-12)
    assert {0.0, 1.0, 0.5} < set(rerolled["results"])


@pytest.mark.parametrize(
    ("prompts", "left_out"),
    [(1, ()), (2, ()), (2, ("ref:0",)), (51, ()), (52, ()), (51, ("ref:0", "ref:7", "tied:9"))],
)
def test_ties_score_as_in_the_package(functions, prompts, left_out):
    judged = [row for row in ties(random.Random(prompts), prompts) if row[0].id not in left_out]
    rows = [{"id": asked.id, "num_correct": asked.num_correct, "scores": scores} for asked, scores in judged]
    _, expected = functions["process_single_model"](rows)
    found = REWARD_BENCH_2.rules(judged)["subsets"]["Ties"]
    assert found["score"] == pytest.approx(expected, abs=1e-12)
    if prompts > 50:
        assert found["rows"] == 2 * prompts - len(left_out)
        assert all(0.1 < found[name] < 0.95 for name in ("accurate_ref", "accurate_tied", "preferred"))
        assert 0 < found["preferred_hard"] < found["preferred"]
