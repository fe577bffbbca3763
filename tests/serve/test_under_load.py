"""The server under many clients, under abuse, and under requests that are made from its own description."""

import re
import subprocess

import pytest

import serve as benchmark
from rmcli.serve.protocols.known import PROTOCOLS
from support.places import REPOSITORY, missing
from support.serving import ask

# What the description cannot say: a text is a rendered conversation, the last message is an assistant's reply.
CONFIGURATION = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "422"]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return benchmark.make_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_scores_are_right_under_load_and_abuse_is_answered_with_4xx(model):
    """As benchmarks/serve.py measures it, smaller. How fast it is, a busy machine cannot tell."""
    found = benchmark.measure(model, clients=64, each=8, rounds=1, at_once=2)
    assert found["load"]["requests"] == 64 * 8
    assert found["beside_abuse"]["requests"] > 0
    assert found["load"]["statuses"] == {200: 512}
    assert 429 in found["abuse"]["a flood"]["statuses"]
    assert benchmark.faults(found) == []


@pytest.mark.slow
def test_schemathesis_finds_nothing(model, tmp_path):
    """`make test-slow` installs it in an environment of its own: it only speaks HTTP."""
    program = REPOSITORY / ".venv-fuzz" / "bin" / "schemathesis"
    if not program.exists():
        missing("schemathesis (make .venv-fuzz/.installed)")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    with benchmark.server(model) as serving:
        page = f"http://127.0.0.1:{serving.port}/openapi.json"
        command = [program, "run", page, "--seed", "1", "-n", "40", "--no-color", "--continue-on-failure"]
        done = subprocess.run(
            [*command, "--suppress-health-check", "all"], cwd=tmp_path, capture_output=True, text=True
        )
        counted = ask(serving.port, "/metrics").text
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    counts = re.findall(r'rmcli_requests_total\{path="([^"]+)",status="(\d+)"\} (\d+)', counted)
    served = {path: int(count) for path, status, count in counts if status == "200"}
    assert {protocol.path for protocol in PROTOCOLS} <= served.keys()  # the examples: 422 alone is no server
    assert served["/score"] > 20  # whatever text is in it, it has a place for errors
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout[-2000:]
    assert int(generated[1]) > 500
