"""The page in a real browser: quiet, offline, drawn, sortable, by keyboard, at 360 px, in print."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorkd_deploy.reporting.report import report
from tests.reporting.chromium import Chromium, browser, find
from tests.reporting.run_folder import ENGINES, MANY_ENGINES, TASKS, build_run
from tests.reporting.test_report import EVIL

PROGRAM = find()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium here, so the report was not opened in a browser"
)
DRAWN = "document.documentElement.dataset.drawn"
COLUMN = (
    "[...document.querySelectorAll('#summary-table tbody tr')].map(r => r.cells[{}].dataset.value)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A class with markup in its name, so that every check also runs over a hostile page.
    department, task, _, *rest = TASKS[0]
    tasks = ((department, task, (EVIL, "other"), *rest), *TASKS[1:])
    return report(build_run(tmp_path_factory.mktemp("page") / "run", tasks=tasks)).html


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


def opened(chromium: Chromium, page: Path, *, width: int = 1280, dark: bool = False) -> None:
    chromium.open(page, width=width, dark=dark)
    chromium.wait(DRAWN)


def test_it_is_quiet_and_asks_for_nothing(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    assert chromium.run("document.querySelectorAll('.plot').length") == 2 + 3 * len(TASKS)
    asked = [url for url in chromium.requests() if not url.startswith(("data:", "blob:"))]
    assert asked == [page.as_uri()]
    assert chromium.complaints() == []
    assert chromium.run("window.evil") is None


def test_plots_are_drawn_with_their_marks(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    marks = "document.querySelectorAll('#plot-{} .scatterlayer .point').length"
    assert chromium.run(marks.format("latency")) == 2 * len(TASKS)
    assert chromium.run(marks.format("memory")) == 2 * len(TASKS)
    for number in range(1, len(TASKS) + 1):  # teacher and expert, five rounds each
        assert chromium.run(marks.format(f"department-{number}-latency")) == 10
    before = chromium.run("document.querySelector('#plot-latency .ytitle').textContent")
    chromium.run("document.querySelector('input[value=auc]').click()")
    chromium.wait("document.querySelector('#plot-memory .ytitle').textContent === 'AUC'")
    assert before == "Accuracy, %"
    assert chromium.run("document.querySelector('#plot-latency .ytitle').textContent") == "AUC"


def test_tables_sort_by_value_with_the_keyboard(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    chromium.run("document.querySelectorAll('#summary-table th button')[4].focus()")
    assert chromium.run(COLUMN.format(4)) == ["0.859", "0.883", "0.505", "0.938"]
    chromium.press("Enter", 13, "\r")
    assert chromium.run(COLUMN.format(4)) == ["0.505", "0.859", "0.883", "0.938"]
    assert chromium.run(COLUMN.format(0)) == ["eye", "breast", "chest", "blood"]
    sort = "document.querySelectorAll('#summary-table th')[4].getAttribute('aria-sort')"
    assert chromium.run(sort) == "ascending"
    chromium.press("Enter", 13, "\r")
    assert chromium.run(COLUMN.format(4)) == ["0.938", "0.883", "0.859", "0.505"]
    assert chromium.run(sort) == "descending"


def test_every_column_of_every_table_sorts(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    # What a column shows after one click and after two; what has no value stays at the end.
    script = """[...document.querySelectorAll('table')].flatMap((table) => {
      const name = table.closest('.block').id;
      const values = (i) => [...table.tBodies[0].rows].map((r) => r.cells[i].dataset.value);
      return [...table.tHead.rows[0].cells].map((header, i) => {
        const press = () => { header.querySelector('button').click(); return values(i); };
        return [name, values(i), press(), press(), header.getAttribute('aria-sort')];
      });
    })"""

    def key(value: str) -> tuple[int, float, str]:
        try:
            return (0, float(value), "")
        except ValueError:
            return (1, 0.0, value)

    found = chromium.run(script)
    assert {name for name, *_ in found} >= {"summary-table", "proof-table", "together-table"}
    assert len({name for name, *_ in found}) >= 2 + 10 * len(TASKS)
    for name, before, rising, falling, said in found:
        known = [value for value in before if value]
        gaps = [""] * (len(before) - len(known))
        assert sorted(rising) == sorted(before), name
        assert said == "descending", name
        numbers = all(key(value)[0] == 0 for value in known)
        if numbers:
            known.sort(key=key)
            assert [*map(key, rising)] == [*map(key, [*known, *gaps])], name
            assert [*map(key, falling)] == [*map(key, [*known[::-1], *gaps])], name
        else:  # words, in the order of the browser's language
            assert falling == [*rising[: len(known)][::-1], *gaps], name


def test_every_control_is_reached_in_order(chromium: Chromium, tmp_path: Path) -> None:
    opened(chromium, report(build_run(tmp_path / "run", tasks=TASKS[:2])).html)
    # Of radio buttons of one name the keyboard's Tab reaches the chosen one, the arrows the rest.
    controls = """[...document.querySelectorAll('a[href], button, input, [tabindex]')].filter(
      (e) => e.checkVisibility() && !e.disabled && (e.type !== 'radio' || e.checked))"""
    count = chromium.run(
        f"window.controls = {controls}; window.reached = [];"
        "addEventListener('focusin', (event) => { reached.push(event.target); });"
        "controls.length"
    )
    assert count > 100
    for _ in range(count):
        chromium.press("Tab", 9)
    missed = "controls.filter((e, i) => reached[i] !== e).map((e) => e.outerHTML.slice(0, 99))"
    assert chromium.run(missed) == []
    assert chromium.run("reached[0].className") == "skip"
    chromium.press("Tab", 9)  # out of the page, or to its beginning: no trap
    assert chromium.run("[document.body, controls[0]].includes(document.activeElement)")


def test_every_control_is_named(chromium: Chromium, page: Path) -> None:
    opened(chromium, page)
    unnamed = (
        "[...document.querySelectorAll('a, button, input, [tabindex]')].filter(e => !(e.innerText"
        " || e.getAttribute('aria-label') || (e.labels && e.labels[0]?.innerText))).length"
    )
    assert chromium.run(unnamed) == 0
    assert chromium.run("document.querySelectorAll('h1').length") == 1
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    found = chromium.run(ids)
    assert len(found) == len(set(found))
    links = "[...document.querySelectorAll('a[href^=\"#\"]')]"
    assert chromium.run(f"{links}.every(a => document.querySelector(a.hash))")


def test_it_fits_360_px(chromium: Chromium, page: Path) -> None:
    opened(chromium, page, width=360)
    assert chromium.run("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('.plot svg.main-svg')].map(e => e.clientWidth)"
    assert all(0 < width <= 360 - 32 for width in chromium.run(wide))


@pytest.mark.parametrize("engines", [ENGINES, MANY_ENGINES], ids=["one engine", "five engines"])
def test_the_first_screen_is_the_summary_and_what_to_know(
    chromium: Chromium, tmp_path: Path, engines: tuple[tuple[str, float, float], ...]
) -> None:
    files = report(build_run(tmp_path / "run", engines=engines))
    opened(chromium, files.html)
    bottom = "document.querySelector('#summary {}').getBoundingClientRect().bottom"
    assert chromium.run("document.querySelectorAll('#summary-table tbody tr').length") == 4
    assert chromium.run("document.querySelectorAll('#summary .note li').length") >= 2
    assert 0 < chromium.run(bottom.format(".note")) <= 900
    assert chromium.run(bottom.format("#summary-table")) <= 900
    assert chromium.complaints() == []


def test_light_and_dark(chromium: Chromium, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    plot = "document.querySelector('#plot-latency .ytitle').style.fill"
    ink = "getComputedStyle(document.body).color"
    opened(chromium, page, dark=True)
    dark = chromium.run(f"[{paper}, {ink}]")
    assert chromium.run(plot) == dark[1]
    chromium.run("document.getElementById('theme').click()")
    chromium.wait(f"{plot} !== {dark[1]!r}")
    light = chromium.run(f"[{paper}, {ink}]")
    assert light[0] != dark[0] and chromium.run(plot) == light[1] != dark[1]
    opened(chromium, page)
    assert chromium.run(f"[{paper}, {ink}]") == light


def test_texts_have_enough_contrast(chromium: Chromium, page: Path) -> None:
    # WCAG 2.2, 1.4.3: relative luminance of text and ground at least 4.5 to 1.
    script = """(() => {
      const lum = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
        .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const ground = lum(getComputedStyle(document.body).backgroundColor);
      return ['p', '.lead', '.over', '.small', '.good', '.bad', '.caption', 'nav a', '.get']
        .map((s) => lum(getComputedStyle(document.querySelector(s)).color))
        .map((l) => (Math.max(l, ground) + 0.05) / (Math.min(l, ground) + 0.05)); })()"""
    for dark in (False, True):
        opened(chromium, page, dark=dark)
        assert min(chromium.run(script)) >= 4.5


def test_it_prints_light_and_comes_back(chromium: Chromium, page: Path) -> None:
    opened(chromium, page, dark=True)
    ink = "getComputedStyle(document.body).color"
    before = chromium.run(ink)
    chromium.run(
        "addEventListener('beforeprint', () => { window.printed = document.querySelector("
        "'#plot-latency .ytitle').style.fill; })"
    )
    assert chromium.pdf().startswith(b"%PDF")
    assert chromium.run("window.printed") != before  # the plots were drawn again, for paper
    assert chromium.run(ink) == before
    assert chromium.complaints() == []


@pytest.mark.parametrize("engines", [ENGINES, MANY_ENGINES], ids=["one engine", "five engines"])
@pytest.mark.parametrize("paper", [695, 717], ids=["A4", "US letter"])  # CSS px between margins
def test_nothing_is_wider_than_the_paper(
    chromium: Chromium,
    tmp_path: Path,
    engines: tuple[tuple[str, float, float], ...],
    paper: int,
) -> None:
    opened(chromium, report(build_run(tmp_path / "run", engines=engines)).html, width=paper)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    chromium.run("dispatchEvent(new Event('beforeprint'))")
    chromium.wait(
        "[...drawn.keys()].every((e) => [330, 680].includes(e.querySelector('svg').clientWidth))"
    )
    wide = f"""[...document.querySelectorAll('main *')]
      .filter((e) => e.getBoundingClientRect().right > {paper} + 1)
      .map((e) => `${{e.closest('[id]')?.id}} ${{e.tagName}} ${{e.getBoundingClientRect().right}}`)
    """
    assert chromium.run(wide) == []
    assert chromium.run("document.documentElement.scrollWidth") <= paper
    hidden = """[...document.querySelectorAll('.plot')].filter((e) => e.querySelector('.legend'))
      .map((e) => e.querySelector('.legend').getBoundingClientRect().bottom
        - e.querySelector('.cartesianlayer').getBoundingClientRect().top)"""
    assert max(chromium.run(hidden)) < 5  # px that a legend covers of its plot


def test_downloads_work_offline(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    opened(chromium, page)
    chromium.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.run("document.querySelector('#summary-table .get[download$=\".json\"]').click()")
    file = tmp_path / "summary-table.json"
    deadline = time.monotonic() + 90
    while not file.exists():  # it has another name until it is whole
        assert time.monotonic() < deadline, [entry.name for entry in tmp_path.iterdir()]
        time.sleep(0.05)
    assert [row["department"] for row in json.loads(file.read_text())] == [t[0] for t in TASKS]
