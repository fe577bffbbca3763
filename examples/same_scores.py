"""Fail where two files of JSON lines differ in a `score`, or in what a trainer took for its `reward`.

python same_scores.py ONE.jsonl OTHER.jsonl [LIMIT]
"""

import json
import sys
from pathlib import Path

LIMIT = 1e-4  # float32, another program: another order of additions


def scores(path: str) -> list[float]:
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line["reward"] if "reward" in line else line["score"] for line in lines]


def main(one: str, other: str, limit: float = LIMIT) -> None:
    apart = [abs(mine - theirs) for mine, theirs in zip(scores(one), scores(other), strict=True)]
    if not apart or not max(apart) <= limit:
        sys.exit(f"{one} and {other} differ by {max(apart, default=0):.2g} in {len(apart)} scores")
    print(f"{len(apart)} scores are the same, to {max(apart):.1g}: {one}, {other}")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
