"""Every page in a real browser: phone to wide screen, light and dark, on paper; nothing asked of a network."""

import json
from pathlib import Path

import pytest

from rmcli.report.evaluation import evaluation_file, write_evaluation
from support.browser import Browser, browser
from support.cli import run_cli
from support.places import write_lines
from support.reports import HOSTILE, evaluation, write_run

pytestmark = pytest.mark.slow

# What cannot be read: text nodes by contrast (WCAG 2.2, 1.4.3: 4.5 to 1), figures by size, the page by its width.
LOOK = """
(() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, ground) => { const [r, g, b, a = 1] = numbers(top);
    return [r, g, b].map((one, at) => one * a + ground[at] * (1 - a)); };
  const light = (rgb) => { const [r, g, b] = rgb.map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (node) => { const above = []; for (let one = node; one; one = one.parentElement) above.unshift(one);
    return above.reduce((under, one) => over(getComputedStyle(one).backgroundColor, under), [255, 255, 255]); };
  const contrast = (node) => { const style = getComputedStyle(node), under = ground(node);
    const colour = node instanceof SVGElement ? style.fill : style.color;
    const [dark, bright] = [light(over(colour, under)), light(under)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05); };
  const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode())
    if (node.data.trim() && node.parentElement.checkVisibility()) texts.push(node);
  const faint = texts.map((node) => [contrast(node.parentElement), node.data.trim().slice(0, 40)])
    .filter(([ratio]) => !(ratio >= 4.5));
  const figures = [...document.querySelectorAll("figure")].map((figure) => {
    const svg = figure.querySelector("svg"), box = svg.getBoundingClientRect();
    const outside = [...svg.querySelectorAll("text")].filter((text) => { const one = text.getBoundingClientRect();
      return Math.min(one.left - box.left, box.right - one.right, one.top - box.top, box.bottom - one.bottom) < -2; })
      .map((text) => text.textContent);
    return { width: box.width, height: box.height, role: svg.getAttribute("role"), outside,
      label: svg.getAttribute("aria-label"), caption: figure.querySelector("figcaption").textContent.trim() }; });
  return { texts: texts.length, faint, figures, plots: document.querySelectorAll("svg").length,
    width: document.documentElement.scrollWidth, window: innerWidth, ground: ground(document.body),
    scripts: document.querySelectorAll("script, [onload], [onerror]").length };
})()
"""
OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true })"
FIGURES = {"audit": 5, "evaluation": 8, "run": 18, "comparison": 9}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, by name; texts in them would break out of a page that does not quote them."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in FIGURES}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        text = HOSTILE.replace("\ud800", "")
        rows = [
            {"prompt": f"{n} {text}", "chosen": f"{text} " * (1 + n % 2), "rejected": f"no {n}"} for n in range(40)
        ]
        write_lines(Path("rows.jsonl"), rows)
        options = ("--map-fn", "canonical", "-p", "tiny", "-o", "data", "--report", found["audit"], "--quiet")
        prepared = run_cli("prepare", "rows.jsonl", *options)
        assert prepared.code == 0, prepared.stderr
        sha256 = json.loads(Path("data/manifest.json").read_text())["manifest_sha256"]
        for name, shift in (("first", 0.0), ("second", 0.3)):
            write_run(folder / name, shift=shift, lr=1e-3 + shift, manifest=sha256, data=folder / "data")
        for arguments in (("first", "-o", found["run"]), ("first", "second", "-o", found["comparison"])):
            shown = run_cli("report", *arguments)
            assert shown.code == 0, shown.stderr
    write_evaluation(evaluation(), evaluation_file(found["evaluation"]))
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def check(tab: Browser, page: Path, width: int, figures: int) -> None:
    for script in ("0", OPEN):  # as it is first seen, and with all that is folded
        tab.run(script)
        seen = tab.run(LOOK)
        assert seen["faint"] == []
        assert seen["texts"] > 50
        assert seen["width"] <= seen["window"] == width
        assert seen["scripts"] == 0
        assert len(seen["figures"]) == seen["plots"] == figures
        for one in seen["figures"]:
            assert one["role"] == "img"
            assert min(one["width"], one["height"]) > 100
            assert one["width"] <= width
            assert one["label"]
            assert one["caption"]
            assert one["outside"] == []
    assert tab.errors == []
    assert set(tab.requests) <= {page.absolute().as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("name", FIGURES)
def test_a_page_can_be_read(tab, pages, name, width, scheme):
    tab.open(pages[name], width, scheme)
    check(tab, pages[name], width, FIGURES[name])
    is_dark = sum(tab.run(LOOK)["ground"]) < 3 * 128
    assert is_dark == (scheme == "dark")


@pytest.mark.parametrize("name", FIGURES)
def test_on_paper_it_is_light_and_whole(tab, pages, name):
    tab.open(pages[name], 768, "dark", media="print")
    seen = tab.run(LOOK)
    assert seen["ground"] == [255, 255, 255]
    assert seen["faint"] == []
    hidden = (
        "[...document.querySelectorAll('details > :not(summary)')].filter((one) => !one.checkVisibility()).length"
    )
    assert tab.run(hidden) == 0


def test_the_check_sees_what_it_looks_for(tab, tmp_path):
    """Faint text, a page that is too wide, an error, a request: none of them passes."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><body style='background: #fff'><p style='color: #999'>faint</p>"
        "<svg width='2000' height='20'><text y='10' fill='#888'>faint, too</text></svg>"
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>"
    )
    tab.open(page, 360, "light")
    seen = tab.run(LOOK)
    assert [text for _, text in seen["faint"]] == ["faint", "faint, too"]
    assert [round(ratio, 2) for ratio, _ in seen["faint"]] == [2.85, 3.54]
    assert seen["width"] > seen["window"]
    assert seen["scripts"] == 1
    assert any('"no"' in one for one in tab.errors)
    assert "http://127.0.0.1:9/x.png" in tab.requests
