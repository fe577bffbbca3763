"""The suites by name, and what `--suite` says."""

from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError
from rmcli.evaluate.suites.judge_bench import JUDGE_BENCH
from rmcli.evaluate.suites.reward_bench import REWARD_BENCH
from rmcli.evaluate.suites.reward_bench_2 import REWARD_BENCH_2
from rmcli.evaluate.suites.rm_bench import RM_BENCH
from rmcli.evaluate.suites.suite import Suite
from rmcli.lines.inputs import parse_input

SUITES = {suite.name: suite for suite in (REWARD_BENCH, REWARD_BENCH_2, RM_BENCH, JUDGE_BENCH)}


def parse_suite(text: str) -> tuple[Suite, SourceSection | None]:
    """`NAME`, which is read from the Hub, or `NAME=INPUT`: a file, a folder, a URL or `path=...,split=...`.

    Raises ConfigError for a name that is none, or no input.
    """
    name, equals, given = text.partition("=")
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}: the suites are {', '.join(SUITES)}", "--suite NAME or NAME=FILE")
    if equals and not given:
        raise ConfigError(f"suite {text!r} names no file", f"{name}=FILE, or {name} alone, which reads the Hub")
    return SUITES[name], parse_input(given) if given else None
