"""What consumers that do not run here rely on: properties of a folder or its server, in each mode; and the page."""

import importlib.util
from contextlib import ExitStack
from urllib.error import HTTPError

import pytest

import consumer_reads
import consumer_wire
import consumers
from rmcli.ship.limits import limit
from support.places import REPOSITORY
from support.serving import serving


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    place = tmp_path_factory.mktemp("reads")
    return {mode: consumers.make_folder(place / mode, mode) for mode in consumers.MODES}


@pytest.fixture(scope="module")
def scorers(folders) -> dict:
    return {mode: consumers.scorer(folder) for mode, folder in folders.items()}


@pytest.fixture(scope="module")
def posts(folders):
    """Per mode how to ask its server."""
    with ExitStack() as stack:
        running = {mode: stack.enter_context(serving(folder)) for mode, folder in folders.items()}
        yield {mode: consumer_wire.posting(one.port) for mode, one in running.items()}


READS = consumer_reads.READS
ON_THE_WIRE = [read for read in READS if read.asks_a_server]


@pytest.mark.parametrize("mode", consumers.MODES)
@pytest.mark.parametrize("read", READS, ids=lambda read: f"{read.consumer.split()[0]}-{read.check.__name__}")
def test_a_property_holds_in_the_modes_that_the_page_says_and_in_no_other(read, mode, folders, scorers, posts):
    found = consumer_reads.outcome(read, folders[mode], scorers[mode], posts[mode])
    if not (read.makes_ids or read.asks_a_server):
        assert found is (mode in read.right)
    elif mode in read.right:
        assert found <= limit("float32", consumers.golden(folders[mode]))
    else:
        assert found > 0.1
        assert read.set


def test_clients_on_the_wire_are_the_four_that_the_page_names():
    assert [read.check.__name__ for read in ON_THE_WIRE] == ["verl", "openrlhf", "llamafactory", "slime"]


@pytest.mark.parametrize("read", ON_THE_WIRE, ids=lambda read: read.check.__name__)
def test_what_has_no_score_is_a_4xx_to_clients_that_try_a_5xx_again(read, folders, posts):
    """verl 16 times. A text that is too long, and one with the reward token inside."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["reserved"], trust_remote_code=False)
    for question, reply in (("word " * 600, "yes"), ("a question", "yes <|reserved_special_token_0|> no")):
        talk = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        with pytest.raises(HTTPError) as refused:
            read.check(posts["reserved"], tokenizer, talk)
        assert refused.value.code == 422
        refused.value.close()


def test_a_bos_that_the_tokenizer_declared_would_be_lost_in_verl(folders, scorers):
    """As the folders declare none, what stands at the beginning of the text stays there."""
    folder = folders["reserved"]
    for line in consumers.golden(folder):
        assert line["text"].startswith("<|im_start|>")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, bos_token="<|im_start|>")
    lines = consumers.golden(folder)
    ids = [consumer_reads.bos_added_again(tokenizer, line["messages"]) for line in lines]
    assert all(one == line["input_ids"][1:] for one, line in zip(ids, lines, strict=True))
    scores = [scorers["reserved"](one) for one in ids]
    assert max(abs(score - line["score"]) for score, line in zip(scores, lines, strict=True)) > 0.1


def consumers_page():
    spec = importlib.util.spec_from_file_location("consumers_page", REPOSITORY / "docs" / "consumers_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_newest_figures_say():
    page = (REPOSITORY / "docs" / "consumers.md").read_text(encoding="utf-8")
    assert page == consumers_page().page(), "run: python docs/consumers_page.py"


def test_the_figures_are_of_every_consumer_and_property_there_is():
    _, found = consumers_page().newest()
    told = [(read["consumer"], read["relies_on"]) for read in found["reads"]]
    assert told == [(read.consumer, read.relies_on) for read in consumer_reads.READS]
    assert len(found["ran"]) == 9
    for one in found["ran"]:
        assert set(consumers.MODES) <= one["largest_difference"].keys()
        assert max(one["largest_difference"].values()) < 1e-4


def test_the_page_says_where_a_consumer_is_wrong():
    """A figure that is off is told as wrong wherever it comes from; so is a property that is not there."""
    cell = consumers_page().cell
    assert cell(1.2e-06) == "1e-06"
    assert cell(0.25) == "**wrong**, by 0.25"
    assert cell(True) == "property held"
    assert cell(False) == "**wrong**"
