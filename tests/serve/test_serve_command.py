"""A server's life: what it refuses to start with, whether it is ready, how it ends; and the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rmcli.errors import RmcliError
from rmcli.logs import as_library
from rmcli.scorer.load import configuration_of
from rmcli.serve.limits import Limits
from rmcli.serve.run import load_service
from rmcli.serve.token import VARIABLE, check_host
from support.places import REPOSITORY
from support.serving import WRITTEN_BEFORE, Watched, ask, serving, talk, with_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_golden(tmp_path_factory.mktemp("served") / "my-model")


@pytest.fixture(autouse=True)
def no_token_of_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- the golden scores ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 3.0}, "a golden score is off by"),
        ({"messages": talk("other", "words")}, "messages of golden conversation 1: other tokens"),
        ({"text": "plain"}, "text of golden conversation 1: not_rendered"),
    ],
)
def test_a_model_that_is_not_what_it_was_does_not_start(tmp_path, folder, change, said):
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in folder.iterdir():
        (changed / path.name).symlink_to(path)
    lines = (changed / "golden.jsonl").read_text().splitlines()
    (changed / "golden.jsonl").unlink()
    (changed / "golden.jsonl").write_text("\n".join([json.dumps(json.loads(lines[0]) | change), *lines[1:]]))
    with as_library(), pytest.raises(RmcliError, match=r"does not score as golden\.jsonl says") as error:
        load_service(configuration_of(changed), changed, Limits())
    assert said in error.value.message


def test_ready_says_when_scores_are_no_longer_those_of_the_export(folder):
    with serving(folder) as running:
        assert running.ask("/ready").json == {"ready": True, "golden": 6}
        running.service.queue._scorer.runner.network.score.weight.data.add_(1.0)
        assert running.ask("/ready").status == 200  # what was found a moment ago
        running.service.ready._since = float("-inf")
        running.ask("/ready")
        wait_for(lambda: running.ask("/ready").status == 503)
        reply = running.ask("/ready").json
        assert reply["ready"] is False
        assert "a golden score is off by" in reply["detail"]
        assert running.ask("/health").status == 200


def test_a_folder_without_golden_scores_is_ready_and_says_so():
    with serving(WRITTEN_BEFORE) as running:
        assert running.ask("/ready").json == {"ready": True, "golden": 0}


# --- the end ---


def test_a_server_that_drains_answers_what_it_holds_and_nothing_new():
    body = {"prompt": "Sort: 2 1", "responses": ["1 2"]}

    def slow(*arguments):
        return Watched(*arguments, seconds=0.7)

    with serving(WRITTEN_BEFORE, queue=slow) as running, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(running.ask, "/score", body) for _ in range(2)]
        wait_for(lambda: running.service.active == 2)
        running.server.loop.call_soon_threadsafe(running.server.drain)
        wait_for(lambda: running.service.is_draining)
        refused = running.ask("/score", body)
        assert (refused.status, refused.json["detail"]) == (503, "the server is shutting down")
        assert refused.headers["retry-after"] == "5"
        assert running.ask("/ready").status == 503
        assert running.ask("/health").status == running.ask("/metrics").status == 200
        assert [reply.result().status for reply in held] == [200, 200]
        wait_for(lambda: running.server.should_exit)


@pytest.mark.slow
def test_sigterm_ends_the_command_with_0_once_all_is_answered(tmp_path):
    """The whole of it, from the command line."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    command = [sys.executable, "-m", "rmcli", "serve", WRITTEN_BEFORE, "--port", "0", "--token-file", token, "--json"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    address = json.loads(process.stdout.readline())["address"]
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rpartition(":")[2])
    texts = [f"<|im_start|>user\nSort: {n}<|im_end|>\n<|im_start|>assistant\n{'1 ' * 60}" for n in range(200)]
    found = []
    right = {"Authorization": "Bearer s3cret"}
    client = threading.Thread(target=lambda: found.append(ask(port, "/get_reward", {"query": texts}, **right)))
    client.start()
    wait_for(lambda: "requests_active 2" in ask(port, "/metrics", **right).text)  # that one and this one
    process.send_signal(signal.SIGTERM)
    client.join(60)
    assert found[0].status == 200
    assert len(found[0].json["rewards"]) == 200
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout == ""
    assert stderr.splitlines()[-1] == "draining: what was asked is answered, then the server ends"
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_second_sigterm_ends_the_command_at_once(tmp_path):
    """While the model is at work for longer than anyone waits."""
    code = (
        "import sys; from support.serving import Watched; from functools import partial; from pathlib import Path;"
        "from rmcli.scorer.load import configuration_of; from rmcli.serve.limits import Limits;"
        "from rmcli.serve.run import Place, run; folder = Path(sys.argv[1]);"
        "run(configuration_of(folder), folder, Place('127.0.0.1', 0, None), Limits(), partial(Watched, seconds=60))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, WRITTEN_BEFORE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"},
    )
    port = int(process.stdout.readline().rpartition(":")[2])
    body = b'{"prompt": "Sort: 2 1", "responses": ["1 2"]}'
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: "requests_active 2" in ask(port, "/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: ask(port, "/ready").status == 503)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=5)
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[-1] == "error: SIGTERM once more: left at once, before all was answered"
    assert "Traceback" not in stderr


# --- the command ---


def test_other_machines_need_a_token_or_to_be_meant(capsys):
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_host(host, None, False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        check_host(host, "s3cret", False)
        assert capsys.readouterr().err == ""
        check_host(host, None, True)
        assert capsys.readouterr().err == f"note: no token: whoever reaches {host} may score\n"
        with pytest.raises(RmcliError, match="lets other machines score, and there is no token"):
            check_host(host, None, False)


def test_a_place_where_others_score_is_refused_before_the_model_is_read(cli):
    result = cli("serve", "no-such-folder", "--host", "0.0.0.0")
    assert result.code == 2
    assert result.stderr == (
        "error: --host 0.0.0.0 lets other machines score, and there is no token\n"
        "hint: give --token-file FILE or set RMCLI_SERVE_TOKEN; for clients that send none: --no-token\n"
    )


@pytest.mark.parametrize("text", ["", "\n", "two words", "schlüssel"])
def test_a_token_that_is_none(cli, tmp_path, monkeypatch, text):
    (tmp_path / "token").write_text(text)
    result = cli("serve", WRITTEN_BEFORE, "--token-file", tmp_path / "token")
    assert (result.code, "holds no token" in result.stderr) == (2, True)
    monkeypatch.setenv(VARIABLE, text)
    result = cli("serve", WRITTEN_BEFORE)
    assert (result.code, f"{VARIABLE} holds no token" in result.stderr) == (2, True)
    assert cli("serve", WRITTEN_BEFORE, "--token-file", tmp_path / "none").code == 2


def test_a_port_in_use_is_said_at_once(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", WRITTEN_BEFORE, "--port", port)
    assert result.code == 2
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr


def test_without_the_extra_one_line_says_how_to_install_it(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = cli("serve", WRITTEN_BEFORE)
    assert result.code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("error: rmcli serve: import of fastapi halted")
    assert second.startswith("hint: install it: ")
    assert "[serve]" in second


def test_a_dry_run_shows_the_plan_and_starts_nothing(cli, monkeypatch):
    monkeypatch.setenv(VARIABLE, "s3cret")
    result = cli("serve", WRITTEN_BEFORE, "-n", "--port", "81", "--max-body", "0.5", "--max-queue", "7")
    assert result.code == 0
    assert "# address = 127.0.0.1:81" in result.stdout
    assert "# token = True" in result.stdout
    assert "max_body=524288" in result.stdout
    assert "max_queue=7" in result.stdout
    assert "s3cret" not in result.stdout + result.stderr


def test_what_is_no_model_is_said(cli, tmp_path):
    result = cli("serve", tmp_path)
    assert result.code in (1, 2)
    assert result.stderr.startswith("error: ")


def test_a_fault_of_ours_is_500_in_json_and_no_score(caplog):
    def broken(*arguments):
        return Watched(*arguments, fails=(1,))

    body = {"prompt": "Sort: 2 1", "responses": ["1 2"]}
    with serving(WRITTEN_BEFORE, queue=broken) as running:
        reply = running.ask("/score", body)
        assert (reply.status, reply.json) == (500, {"detail": "a fault of the server: RuntimeError"})
        assert running.ask("/score", body).status == 200
