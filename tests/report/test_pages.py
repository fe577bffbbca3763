"""Pages from literal figures: what they say, texts that would break out, files that lack or garble what is shown."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rmcli.errors import ConfigError, RmcliError
from rmcli.report.evaluation import evaluation_file, read_evaluation, write_evaluation
from rmcli.report.judged import FOLDED, verdict
from rmcli.report.page import is_figure, readable
from rmcli.report.values import decimal, interval, number, signed
from support.reports import HOSTILE, LONG, evaluation, one_set

VOID = {"meta"}


class Structure(HTMLParser):
    """Which elements a page has, that they are closed in order, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes |= {name for name, _ in attributes}
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data


def written(folder: Path, metrics: dict, name: str = "page.html") -> str:
    path = folder / name
    write_evaluation(metrics, evaluation_file(path, overwrite=True))
    return path.read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[str]]:
    """The cells of all tables."""
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in re.findall(r"<tr>(.*)</tr>", text)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return written(tmp_path_factory.mktemp("whole"), evaluation())


def test_an_evaluation_says_its_figures(text):
    page = Structure(text)
    assert "<title>Evaluation of runs/first/model</title>" in text
    rows = rows_of(text)
    # 60 margins of -1 + n/15 less 0.1 x (n % 5), in a third of the pairs turned round: figures() is tested elsewhere
    figures = one_set()["figures"]
    assert ["hh_rlhf_harmless", "60", decimal(figures["accuracy"]), interval(figures["interval"])] == next(
        row[:4] for row in rows if row[:1] == ["hh_rlhf_harmless"]
    )
    assert ["log-loss", decimal(figures["calibration"]["log_loss"]), "a coin: 0.693"] in rows
    assert ["-49 to 0", "20", "0.720", "0.620 to 0.770", "0.400"] in rows
    assert ["bold", "100", "+0.120", "0.100 to 0.140", "71.0%", "3", "2"] in rows
    assert ["errors: overlong", "2", ""] in rows
    assert ["Chat Hard", "0.525", "456"] in rows
    assert "12 rows are missing" in page.text
    assert "better on these pairs. 2 comparisons that one of them has no score of are left out." in page.text
    assert ["sections.Chat", "0.9"] in rows
    assert ["model.dtype", "float32"] in rows
    assert ["torch", "2.13.0"] in rows
    assert (
        "Against runs/other/model on the same 60 pairs: it has 0.700, this one +0.050 (95 %: 0.010 to 0.090" in text
    )
    assert "the interval does not hold 0: this model is better on these pairs." in text
    assert "margin -3.14 " in page.text
    assert "0.713" in page.text  # the suite's headline, 0.7125
    for heading in ("The worst pairs", "Format bias", "Configuration", "Versions"):
        assert heading in page.text


def test_every_figure_has_a_label_a_caption_and_the_pages_colours(text):
    page = Structure(text)
    assert page.found.count("figure") == page.found.count("figcaption") == 8  # four of each set
    assert text.count('role="img" aria-label="') == page.found.count("svg") == 8
    assert "var(--series-1)" in text
    assert "#0a0a" not in text  # what stands for a colour while matplotlib draws
    assert len(page.ids) == len(set(page.ids))


def test_a_page_needs_no_network_and_runs_nothing(text):
    page = Structure(text)
    assert {"script", "link", "img", "iframe", "object", "image"} & set(page.found) == set()
    assert {name for name in page.attributes if name.startswith("on")} == set()
    assert "src" not in page.attributes
    assert {one for one in re.findall(r'href="([^"]*)"', text) if not one.startswith("#")} == set()
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_hostile_text_is_text(tmp_path):
    metrics = evaluation(model=HOSTILE, against=HOSTILE, config={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})
    for one in metrics["sets"]:
        one |= {"name": HOSTILE, "errors": {HOSTILE: 1}}
        one["by"]["length_difference"][0]["value"] = HOSTILE
        one["worst"][0] |= dict.fromkeys(("prompt", "chosen", "rejected", "where"), HOSTILE)
    text = written(tmp_path, metrics)
    page = Structure(text)
    assert "script" not in page.found
    assert "onload" not in page.attributes
    shown = '<script>alert(1)</script> & "q" $x$ ␀␛[31m \\u202eright to left \\ud800 </div><svg onload=alert(2)>'
    assert page.text.count(shown) > 12
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_texts_of_the_worst_pairs_are_whole_and_long_ones_are_folded(tmp_path):
    words = "a  b\n\n\tc   d"
    metrics = evaluation(sets=[one_set()])
    metrics["sets"][0]["worst"][0] |= {"prompt": words, "chosen": "x" * FOLDED, "rejected": "y" * (FOLDED + 1)}
    text = written(tmp_path, metrics)
    assert f'<div class="text">{words}</div>' in text
    assert f'<div class="text">{LONG}</div></details>' in text
    assert f'<div class="text">{"x" * FOLDED}</div>\n' in text
    assert f'<div class="text">{"y" * (FOLDED + 1)}</div></details>' in text
    assert "(501 characters)" in text


def test_more_than_five_pairs_are_folded(tmp_path):
    metrics = evaluation(sets=[one_set() | {"figures": {}, "by": {}}], suites=[])
    metrics["sets"][0]["worst"] = [{"margin": -float(one), "prompt": f"prompt {one}"} for one in range(8, 0, -1)]
    text = written(tmp_path, metrics)
    Structure(text)
    first, folded = text.split("<summary>the next 3</summary>")
    assert (first.count('<div class="pair">'), folded.count('<div class="pair">')) == (5, 3)
    assert "prompt 4" in first
    assert "prompt 3" in folded


def test_the_same_figures_give_the_same_bytes(tmp_path):
    metrics = evaluation(sets=[one_set()])
    read = json.loads(json.dumps(metrics))
    assert written(tmp_path, metrics, "one.html") == written(tmp_path, read, "two.html")


def test_what_was_not_measured_is_left_out(tmp_path):
    bare = {"name": "a", "figures": {"pairs": 0, "accuracy": None, "interval": None, "margins": {}, "scores": {}}}
    empty = {"by": {}, "against": None, "format_bias": [], "worst": [], "errors": {}, "noted": {}, "map_fn": None}
    page = Structure(written(tmp_path, evaluation(sets=[bare | empty], suites=[], against=None)))
    assert "no pair was judged" in page.text
    assert "svg" not in page.found
    for heading in ("The worst pairs", "Format bias", "By ", "Against", "Suite"):
        assert heading not in page.text
    page = Structure(written(tmp_path, evaluation(sets=[bare | empty | {"figures": {}}], suites=[], against=None)))
    assert "scores were not finite: no figures" in page.text
    page = Structure(written(tmp_path, evaluation(sets=[], suites=[])))
    assert "No set was evaluated." in page.text


def every_place(value, place=()):
    """The places of all values inside, each a list of keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from every_place(one, (*place, key))


def test_a_page_comes_of_any_file_that_lacks_or_garbles_something(tmp_path, monkeypatch):
    """Every key of the schema left out, and made a null, a text, a list, an object, NaN: one at a time."""
    monkeypatch.setattr("rmcli.report.judged._plots", lambda *_: [])  # drawn below
    whole = evaluation(sets=[one_set()])
    places = [place for place in every_place(whole) if place[1:2] != (0,) or place[-1] not in range(2, 40)]
    gone = object()
    seen = 0
    for place in places:
        if place == ("sets",) or "counts" in place[:-1] or "edges" in place[:-1]:
            continue
        for value in (gone, None, "text", [1], {"a": 1}, float("nan")):
            metrics = copy.deepcopy(whole)
            inside = metrics
            for key in place[:-1]:
                inside = inside[key]
            if value is gone:
                del inside[place[-1]]
            else:
                inside[place[-1]] = value
            write_quickly(metrics)
            seen += 1
    assert seen > 600


def write_quickly(metrics: dict) -> None:
    """What a page shows, without the template, which takes any value."""
    from rmcli.report.evaluation import _about, sets_and_suites, version_rows
    from rmcli.report.judged import overview_row
    from rmcli.report.values import mappings

    sets_and_suites(metrics)
    found = [_about(metrics), version_rows(metrics), [overview_row(one) for one in mappings(metrics.get("sets"))]]
    assert "nan" not in str(found)


@pytest.mark.parametrize(
    "value", [None, "text", [None, 2], {"a": 1}, float("nan"), True, pytest.param(10**400, id="huge")]
)
def test_plots_of_garbled_figures_are_left_out(tmp_path, value):
    metrics = evaluation(sets=[one_set()], suites=[])
    figures = metrics["sets"][0]["figures"]
    figures["margins"]["histogram"]["counts"] = value
    figures["scores"]["histogram"]["edges"][0] = value
    figures["scores"]["bound"] = value
    figures["calibration"]["curve"][0]["accuracy"] = value
    figures["calibration"]["ece"] = value
    metrics["sets"][0]["by"]["length_difference"][0]["accuracy"] = value
    metrics["sets"][0]["by"]["length_difference"][1]["interval"] = value
    page = Structure(written(tmp_path, metrics))
    assert page.found.count("svg") == 2
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)


def test_a_file_that_is_no_evaluation_is_refused(tmp_path):
    path = tmp_path / "metrics.json"
    for content in ("", "{", "[]", "{}", '{"kind": "rmcli evaluation"}', '{"kind": "x", "sets": []}', "[" * 100_000):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"metrics\.json (cannot be read|is no metrics\.json)"):
            read_evaluation(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read: no JSON"):
        read_evaluation(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_evaluation(tmp_path / "gone.json")


def test_a_users_own_file_is_never_lost(tmp_path):
    path, metrics = tmp_path / "mine.html", evaluation(sets=[])
    for content in ("mine", "<!doctype html><title>Evaluation of my cat</title>", "<!doctype html><title>Audit of x"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="exists and is left alone"):
            write_evaluation(metrics, evaluation_file(path))
        with pytest.raises(ConfigError, match="holds no evaluation report and is left alone"):
            write_evaluation(metrics, evaluation_file(path, overwrite=True))
        assert path.read_text() == content
    with pytest.raises(ConfigError, match="is the input"):
        write_evaluation(metrics, evaluation_file(path, overwrite=True, inputs=[path]))
    path.unlink()
    write_evaluation(metrics, evaluation_file(path))
    write_evaluation(metrics | {"model": "other"}, evaluation_file(path, overwrite=True))
    assert "<title>Evaluation of other</title>" in path.read_text()
    with pytest.raises(RmcliError):
        write_evaluation(metrics, evaluation_file(tmp_path))


def test_cells():
    assert [decimal(one) for one in (0.87149, 5.9e-6, 0, -0.25, 12345.678, None, "x", True)] == [
        *("0.871", "5.9e-06", "0.000", "-0.250", "12,345.678", "-", "-", "-")
    ]
    assert (signed(0.05), signed(-0.05), signed(float("nan"))) == ("+0.050", "-0.050", "-")
    assert (interval([0.5, 0.75]), interval([0.5]), interval([0.5, None])) == ("0.500 to 0.750", "-", "-")
    assert [number(one) for one in (1, 1.5, float("inf"), False, "1", 10**400)] == [1, 1.5, None, None, None, None]
    for cell in (3, 0.5, "-", "96.4%", "1,234", "15/9", "-0.075", "+0.050", "5.9e-06", "-1.00 to 2.93"):
        assert is_figure(cell), cell
    for cell in ("", "a 1", "1 to", "to 1", "-50 or less", "2026-11-26", "x.jsonl"):
        assert not is_figure(cell), cell
    assert readable("a\r\nb\rc\td\x85") == "a\nb␍c\td\\x85"
    assert verdict({"interval": [-0.1, 0.1]}, "A", "B") == (
        "the interval holds 0: these pairs do not tell the two apart."
    )
    assert verdict({"interval": [-0.2, -0.1]}, "A", "B").endswith("B is better on these pairs.")
    assert verdict({"interval": None}, "A", "B") == "no interval was written down."
