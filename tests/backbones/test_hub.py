"""A Hub that does not answer costs no waiting, wherever it is asked; one that answers is asked."""

import json
import socket

import pytest

from rmcli.backbones import hub
from support.hub_server import point_at
from support.places import write_lines

PAIR = {"prompt": "Add 1 and 2", "chosen": "3", "rejected": "4"}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What huggingface_hub sleeps between two tries."""
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "rows.jsonl", "--map-fn", "canonical"),
        ("prepare", "org/rows", "--map-fn", "canonical", "-p", "tiny"),
        ("inspect-token",),
        ("inspect-token", "org/model"),
    ],
)
def test_a_hub_that_takes_no_connection_is_not_waited_for(cli, tmp_path, hub_server, waits, monkeypatch, arguments):
    point_at("http://127.0.0.1:9", monkeypatch)
    write_lines(tmp_path / "rows.jsonl", [PAIR])
    result = cli(*arguments)
    assert result.code == 1
    assert "cannot" in result.stderr, result.stderr
    assert result.stderr.count("error: ") == 1, result.stderr
    assert waits == []


def test_the_hub_that_answers_is_asked(cli, hub_server, waits):
    (hub_server.folder / "config.json").write_text(json.dumps({"model_type": "none-such"}))
    result = cli("inspect-token", "org/model")
    assert "cannot load the config of org/model" in result.stderr
    assert "none-such" in result.stderr
    assert hub_server.bytes_sent > 0
    assert waits == []


def test_a_connection_gets_five_seconds(monkeypatch):
    """Where packets are swallowed: the name resolves, and nothing comes back."""
    asked = []

    def connect(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert not hub.is_reachable("https://huggingface.co")
    assert not hub.is_reachable("http://mirror:8080")
    assert asked == [(("huggingface.co", 443), 5.0), (("mirror", 8080), 5.0)]
    assert not hub.is_reachable("http://mirror:none")


def test_only_a_proxy_of_this_scheme_and_host_answers_for_the_hub(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: pytest.fail("asked past the proxy"))
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    assert hub.is_reachable("https://huggingface.co")

    def refuse(address, timeout):
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert not hub.is_reachable("http://huggingface.co")
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert not hub.is_reachable("https://huggingface.co")
