"""Pages in a real browser, from file:// and without a network: structure, not pixels."""

import time

import pytest

from jaxloop.reporting import figures, report
from jaxloop.runtime.atomic_io import write_atomic
from tests.browser import Browser, chromium
from tests.reporting.test_report import HOSTILE, made_up

pytestmark = pytest.mark.slow
# Letters below this many pixels are not readable.
SMALLEST = 8.5


@pytest.fixture(scope="module")
def browser():
    with Browser(chromium()) as opened:
        yield opened


def wide_figure():
    with figures.style():
        figure, axes = figures.panels(1, 4)
        for one in axes.flat:
            one.plot([0, 1], [1, 0])
            one.set_xlabel("words at the axis")
    return figure


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with everything that a page may have."""
    text = report.render(
        made_up(),
        title="A study of collapse",
        samples=[report.Samples("r = 1", "r1-s0", 0, [HOSTILE, "a" * 500], 7, ["b " * 900, ""])],
        failures=[report.Failure("r1-s1" * 20, 3, "the training loss is not finite")],
        run_info=[("command", "python -m jaxloop.main --config=" + "x" * 200), ("y" * 99, "z")],
        config={"chain": {"ratios": [0.125, 1]}},
        references={"text_length": 9.0},
        sections=[
            report.Section(
                "Effects",
                drawings=[report.Drawing("Four panels", "side by side", wide_figure(), wide=True)],
                tables=[report.Table("Numbers", "", ["what"] * 12, [["a word"] + [1.0] * 11])],
            )
        ],
        progress=report.Progress("This run is going on", ["3 of 8 are finished"], 3, 8, 30),
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


LETTERS = """[...document.querySelectorAll('svg text')].map(t => {
  const m = t.getScreenCTM();
  return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b);
})"""
WORDS = """[...document.querySelectorAll('p, td, th, dd, dt, summary, small, span, .text, pre')]
  .map(e => parseFloat(getComputedStyle(e).fontSize))"""
FIGURES = """[...document.querySelectorAll('svg[role=img]')].map(s => {
  const box = s.getBoundingClientRect();
  const drawn = [...s.querySelectorAll('path')].some(p => {
    const b = p.getBoundingClientRect(), c = getComputedStyle(p);
    return b.width > 5 && b.height > 5 && (c.stroke !== 'none' || c.fill !== 'none');
  });
  return {width: box.width, height: box.height, name: s.getAttribute('aria-label'), drawn: drawn};
})"""


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_is_whole_and_readable(browser, path, width, dark):
    page = browser.open(path, width=width, dark=dark)
    assert page.faults() == []
    # Nothing but the file itself was asked for, and nothing else could have been had.
    assert [url.partition(":")[0] for url in page.requests()] == ["file"]
    shown = page.value(FIGURES)
    assert len(shown) == 3
    for figure in shown:
        assert figure["width"] > 250 and figure["height"] > 100 and figure["drawn"], figure
        assert len(figure["name"]) > 10, figure
    assert min(page.value(LETTERS)) >= SMALLEST and len(page.value(LETTERS)) > 30
    assert min(page.value(WORDS)) >= 12
    # The page itself does not scroll sideways: what is wider scrolls inside its own box.
    assert page.value("document.documentElement.scrollWidth") <= width


def brightness(page, element, name):
    script = f"getComputedStyle(document.querySelector('{element}')).{name}"
    colour = page.value(script).partition("(")[2].rstrip(")").split(",")
    return sum(float(part) for part in colour[:3]) / 3


def test_dark_mode_turns_paper_and_ink_round(browser, path):
    light, dark = (browser.open(path, dark=choice) for choice in (False, True))
    assert (
        brightness(light, "body", "backgroundColor") > 200 > 100 > brightness(light, "h1", "color")
    )
    assert brightness(dark, "body", "backgroundColor") < 60 < 180 < brightness(dark, "h1", "color")
    assert brightness(light, "svg text", "fill") < 130 < brightness(dark, "svg text", "fill")
    line = "document.querySelector('svg[aria-label^=Semantic] path[style*=\"stroke: var(--c\"]')"
    strokes = {p.value(f"getComputedStyle({line}).stroke") for p in (light, dark)}
    assert len(strokes) == 2  # curves have a colour of their own on dark paper


def test_everything_that_opens_or_scrolls_is_reached_by_the_keyboard(browser, path):
    page = browser.open(path, width=400)
    wanted = page.value("""[...document.querySelectorAll('summary, [tabindex]')].filter(
        e => e.checkVisibility({contentVisibilityAuto: true})).length""")
    reached = set()
    for _ in range(wanted + 40):
        page.press("Tab")
        reached.add(
            page.value("[...document.querySelectorAll('*')].indexOf(document.activeElement)")
        )
    all_reached = page.value("""[...document.querySelectorAll('summary, [tabindex]')].filter(
        e => e.checkVisibility({contentVisibilityAuto: true})).map(
        e => [...document.querySelectorAll('*')].indexOf(e))""")
    assert wanted > 5 and set(all_reached) <= reached
    page.value("document.querySelector('details:not([open]) summary').focus()")
    before = page.value("document.querySelectorAll('details[open]').length")
    page.press("Enter")
    assert page.value("document.querySelectorAll('details[open]').length") == before + 1
    outline = page.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the keyboard is can be seen


def test_a_screen_reader_is_told_of_figures_progress_and_tables(browser, path):
    named = browser.open(path).named()
    images = [name for role, name in named if role in ("image", "img")]
    assert len(images) == 3 and all(images)
    assert any("in generation 7" in name for name in images)
    (progress,) = [name for role, name in named if role == "progressIndicator"] or [
        name for role, name in named if role.lower() == "progressbar"
    ]
    assert progress == "3 of 8 generations are finished"
    assert ("columnheader", "r = 1") in named and ("rowheader", "Length") in named
    assert ("heading", "A study of collapse") in named


def test_a_page_that_breaks_its_policy_would_be_found(browser, path, tmp_path):
    text = path.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        text.replace("</main>", "<script>x()</script><img src='https://a.example/a.png'></main>")
    )
    page = browser.open(broken)
    assert len(page.faults()) >= 2


def test_a_page_of_a_running_study_is_watched_without_a_server(browser, tmp_path):
    path = tmp_path / "report.html"

    def write(done):
        progress = report.Progress("This run is going on", [f"{done} are finished"], done, 8, 1)
        write_atomic(path, report.render(made_up(), title="T", progress=progress).encode())

    write(2)
    page = browser.open(path)
    assert page.value("document.querySelector('progress').value") == 2
    write(3)
    end = time.monotonic() + 30
    while page.value("document.querySelector('progress')?.value") != 3:
        assert time.monotonic() < end, "the page was not loaded again"
        time.sleep(0.2)
    assert page.faults() == []


def test_a_finished_page_is_left_alone(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report.render(made_up(), title="T"), encoding="utf-8")
    page = browser.open(path)
    assert page.value("document.querySelectorAll('progress, meta[http-equiv=refresh]').length") == 0
    assert page.value("document.scripts.length") == 0
