"""docs/serve.md: its requests are served, its options and statuses are those of the code."""

import json
import re
import shlex

import pytest

from rmcli.serve.protocols.known import ERROR_HINTS, PROTOCOLS
from support.places import REPOSITORY
from support.serving import WRITTEN_BEFORE, serving

PAGE = (REPOSITORY / "docs" / "serve.md").read_text(encoding="utf-8")


def test_every_request_of_the_page_is_served_and_all_give_the_same_score():
    lines = [line for line in PAGE.splitlines() if line.startswith("curl ")]
    found = {}
    with serving(WRITTEN_BEFORE) as running:
        for line in lines:
            _, address, option, body = shlex.split(line)
            assert option == "-d"
            path = address.removeprefix("localhost:8000")
            reply = running.ask(path, body.encode())
            assert reply.status == 200, (line, reply.text)
            found[path] = reply.json
    assert found.keys() == {protocol.path for protocol in PROTOCOLS} - {"/pooling"}
    scores = [
        found["/score"]["scores"][0]["value"],
        found["/get_reward"]["rewards"][0],
        found["/classify"]["data"][0]["probs"][0],
        found["/v1/score/evaluation"]["scores"][0],
        found["/slime"],
    ]
    assert scores == pytest.approx([scores[0]] * 5, abs=1e-6)


def test_the_page_names_paths_options_and_reasons_that_there_are(cli):
    options = cli("serve", "--help").stdout
    for option in set(re.findall(r"--(?:max|receive|token|no|host|port)[-a-z]*", PAGE)):
        assert f"{option} " in options, option
    for protocol in PROTOCOLS:
        assert f"`{protocol.path}`" in PAGE
    for reason in ("bos_twice", "not_rendered", "no_generation_prompt"):
        assert f"`{reason}`" in PAGE
        assert reason in ERROR_HINTS
    assert json.dumps(sorted(set(re.findall(r"^\| (\d{3}) \|", PAGE, re.M)))) == (
        '["401", "408", "413", "415", "422", "429", "503"]'
    )
