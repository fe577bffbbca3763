"""What failed because another process has ended is not said to be the cause."""

import pytest

from rmcli.errors import FailedElsewhere, RmcliError
from rmcli.parallel import word
from rmcli.parallel.word import peers_explained

GONE = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")


@pytest.fixture(autouse=True)
def nobody_says_anything(monkeypatch):
    monkeypatch.setattr(word, "_store", object())
    monkeypatch.setattr(word, "_wait_for_word", lambda: None)


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(type(error) if cause is None else Exception) as info, peers_explained():
        raise error from cause
    return info.value


def test_a_file_that_could_not_be_written_for_that_is_not_the_cause():
    found = raised(RmcliError("cannot write checkpoint step-6"), GONE)
    assert isinstance(found, FailedElsewhere)
    assert not found.is_told


def test_an_error_of_our_own_stays():
    for cause in (None, OSError(28, "No space left on device"), RuntimeError("shapes differ")):
        found = raised(RmcliError("cannot write checkpoint step-6"), cause)
        assert (type(found), str(found)) == (RmcliError, "cannot write checkpoint step-6")


def test_who_knows_already_that_another_failed_keeps_its_words():
    told = FailedElsewhere("process 1 has ended; the last checkpoint is step-3")
    assert raised(told, GONE) is told
