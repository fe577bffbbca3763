"""What consumers that do not run here rely on: each property on a folder, in each mode; and the page that says so."""

import importlib.util

import pytest

import consumer_reads
import consumers
from rmcli.ship.limits import limit
from support.places import REPOSITORY


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict:
    place = tmp_path_factory.mktemp("reads")
    return {mode: consumers.make_folder(place / mode, mode) for mode in consumers.MODES}


@pytest.fixture(scope="module")
def scorers(folders) -> dict:
    return {mode: consumers.scorer(folder) for mode, folder in folders.items()}


CHECKED = [read for read in consumer_reads.READS if read.check is not None]


@pytest.mark.parametrize("mode", consumers.MODES)
@pytest.mark.parametrize("read", CHECKED, ids=lambda read: f"{read.consumer.split()[0]}-{read.check.__name__}")
def test_a_property_holds_in_the_modes_that_the_page_says_and_in_no_other(read, mode, folders, scorers):
    found = consumer_reads.outcome(read, folders[mode], scorers[mode])
    if not read.makes_ids:
        assert found is (mode in read.right)
    elif mode in read.right:
        assert found <= limit("float32", consumers.golden(folders[mode]))
    else:
        assert found > 0.1
        assert read.set


def test_a_bos_that_the_tokenizer_declared_would_be_lost_in_verl(folders, scorers):
    """As the folders declare none, what stands at the beginning of the text stays there."""
    folder = folders["reserved"]
    for line in consumers.golden(folder):
        assert line["text"].startswith("<|im_start|>")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, bos_token="<|im_start|>")
    lines = consumers.golden(folder)
    ids = [consumer_reads.text_without_bos(tokenizer, line["messages"]) for line in lines]
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
    assert cell(None) == "awaits the wire"
