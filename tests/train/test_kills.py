"""Killed at random moments, a run goes on without a human and ends as if it never was."""

import json
import subprocess
import sys

import pytest

from support.places import REPOSITORY


@pytest.mark.slow  # `python benchmarks/kills.py` kills in 200 runs
def test_killed_runs_end_as_the_one_never_killed_and_leave_nothing(tmp_path):
    script, report = REPOSITORY / "benchmarks" / "kills.py", tmp_path / "kills.json"
    command = [sys.executable, script, "--runs", "12", "--seed", "1", "--output", report]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(report.read_text())
    assert (told["runs"], told["runs_equal"], told["faults"]) == (12, 12, [])
    assert told["kills"] >= 20
    assert 2 * told["kills_inside"] >= told["kills"]
