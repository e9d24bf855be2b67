"""The page in a real browser: quiet, offline, drawn, sortable, by keyboard, at 360 px, in print."""

from __future__ import annotations

import json
import re
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
COLUMN = "[...document.querySelectorAll('#verdicts tbody tr')].map(r => r.cells[{}].dataset.value)"
A4 = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}  # inches


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A class with markup in its name, so that every check also runs over a hostile page.
    department, task, _, *rest = TASKS[0]
    tasks = ((department, task, (EVIL, "other"), *rest), *TASKS[1:])
    return report(build_run(tmp_path_factory.mktemp("page") / "run", tasks=tasks)).html


@pytest.fixture(scope="module", params=[ENGINES, MANY_ENGINES], ids=["one engine", "five engines"])
def plain_page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(build_run(tmp_path_factory.mktemp("plain") / "run", engines=request.param)).html


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with browser(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


def test_it_is_quiet_and_asks_for_nothing(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    assert chromium.run("document.querySelectorAll('.plot').length") == 2 + 5 * len(TASKS)
    asked = [url for url in chromium.requests() if not url.startswith(("data:", "blob:"))]
    assert asked == [page.as_uri()]
    assert chromium.complaints() == []
    assert chromium.run("window.evil") is None


def test_plots_are_drawn_with_titled_marks(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    marks = "document.querySelectorAll('#plot-{} div:not([hidden]) > .drawing title').length"
    assert chromium.run(marks.format("latency")) == 2 * len(TASKS)
    assert chromium.run(marks.format("memory")) == 2 * len(TASKS)
    for number in range(1, len(TASKS) + 1):  # teacher and expert, five rounds each
        assert chromium.run(marks.format(f"department-{number}-latency")) == 10
    shown = "[...document.querySelectorAll('#plot-{} .title')].filter((e) => e.checkVisibility())"
    texts = f"{shown}.map((e) => e.textContent)"
    assert chromium.run(texts.format("latency")) == ["Accuracy, %", "Median latency, ms"]
    chromium.run("document.querySelector('input[value=auc]').click()")
    for key in ("latency", "memory"):
        assert chromium.run(texts.format(key))[0] == "AUC"


def test_tables_sort_by_value_with_the_keyboard(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    before = [float(value) for value in chromium.run(COLUMN.format(3))]
    assert before != sorted(before)
    chromium.run("document.querySelectorAll('#verdicts th button')[3].focus()")
    chromium.press("Enter", 13, "\r")
    assert [float(value) for value in chromium.run(COLUMN.format(3))] == sorted(before)
    sort = "document.querySelectorAll('#verdicts th')[3].getAttribute('aria-sort')"
    assert chromium.run(sort) == "ascending"
    chromium.press("Enter", 13, "\r")
    assert [float(v) for v in chromium.run(COLUMN.format(3))] == sorted(before, reverse=True)
    assert chromium.run(sort) == "descending"


def test_predictive_values_follow_the_prevalence(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    cells = "[...document.querySelectorAll('#predictive tbody tr')].map((row) => [...row.cells]{})"
    numbers = chromium.run(cells.format(".map((c) => c.dataset.value)"))
    texts = cells.format(".map((c) => c.textContent)")
    before = chromium.run(texts)
    assert len(numbers) == 2  # the two tasks with two classes
    set_to = "((e) => {{ e.value = '{}'; e.dispatchEvent(new Event('input')); }})(prevalence)"
    chromium.run(set_to.format(1))
    after = chromium.run(cells.format(".map((c) => c.dataset.value)"))
    for old, new in zip(numbers, after, strict=True):
        hit, spared = float(old[2]), float(old[3])
        yes = hit * 0.01 / (hit * 0.01 + (1 - spared) * 0.99)
        no = spared * 0.99 / (spared * 0.99 + (1 - hit) * 0.01)
        assert [float(v) for v in new[4:]] == pytest.approx([0.01, yes, no])
    assert "1 %" in chromium.run(texts)[0][4]
    for nothing in ("", 0, 100):
        chromium.run(set_to.format(nothing))
        assert chromium.run(texts) == before


def test_a_table_is_copied_as_markdown(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    text = chromium.run("markdown(document.querySelector('#engines-table table'))")
    head, rule, *rows = text.splitlines()
    assert head.startswith("| Department | Model | Runtime | Precision | Batch |")
    assert set(rule) == set("|-:") and len(rows) == 2 * (1 + len(TASKS))
    assert len({line.count(" | ") for line in (head, *rows)}) == 1
    assert "| onnx | fp32 | 1 |" in rows[0]


def test_a_plot_is_saved_with_its_colours_and_legend(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    text = chromium.run("saved(document.getElementById('plot-latency'))")
    assert "var(--" not in text and "class=" not in text
    assert text.count("</title>") == 2 * len(TASKS)
    for department, *_ in TASKS:
        assert f">{department}</text>" in text


def test_every_column_of_every_table_sorts(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    # What a column shows after one click and after two; what has no value stays at the end.
    script = """[...document.querySelectorAll('table')].flatMap((table) => {
      const name = table.closest('[id]').id;
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
    assert {name for name, *_ in found} >= {"verdicts", "proof-table", "together-table"}
    assert len({name for name, *_ in found}) >= 4 + 7 * len(TASKS)
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
    chromium.open(report(build_run(tmp_path / "run", tasks=TASKS[:2])).html)
    # Of radio buttons of one name the keyboard's Tab reaches the chosen one, the arrows the rest.
    controls = """[...document.querySelectorAll('a[href], button, input, [tabindex]')].filter(
      (e) => e.checkVisibility() && !e.disabled && (e.type !== 'radio' || e.checked))"""
    count = chromium.run(
        f"window.controls = {controls}; window.reached = [];"
        "addEventListener('focusin', (event) => { reached.push(event.target); });"
        "controls.length"
    )
    assert count > 80
    for _ in range(count):
        chromium.press("Tab", 9)
    missed = "controls.filter((e, i) => reached[i] !== e).map((e) => e.outerHTML.slice(0, 99))"
    assert chromium.run(missed) == []
    assert chromium.run("reached[0].className") == "skip"
    chromium.press("Tab", 9)  # out of the page, or to its beginning: no trap
    assert chromium.run("[document.body, controls[0]].includes(document.activeElement)")


def test_every_control_is_named(chromium: Chromium, page: Path) -> None:
    chromium.open(page)
    unnamed = (
        "[...document.querySelectorAll('a, button, input, [tabindex]')].filter(e => !(e.innerText"
        " || e.getAttribute('aria-label') || (e.labels && e.labels[0]?.innerText))).length"
    )
    assert chromium.run(unnamed) == 0
    shown = "[...document.querySelectorAll('h1')].filter((e) => e.checkVisibility()).length"
    assert chromium.run(shown) == 1  # each sheet has its own, where it is alone on the page
    ids = "[...document.querySelectorAll('[id]')].map(e => e.id)"
    found = chromium.run(ids)
    assert len(found) == len(set(found))
    links = "[...document.querySelectorAll('a[href^=\"#\"]')]"
    assert chromium.run(f"{links}.every(a => document.querySelector(a.hash))")


def test_it_fits_360_px(chromium: Chromium, page: Path) -> None:
    chromium.open(page, width=360)
    assert chromium.run("document.documentElement.scrollWidth") == 360
    wide = """[...document.querySelectorAll('.drawing text, .bar a')]
      .filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect())
      .filter((box) => box.left < 0 || box.right > 360).length"""
    assert chromium.run(wide) == 0
    cells = "[...document.querySelectorAll('#verdicts tbody td')].map((e) => e.clientWidth)"
    assert min(chromium.run(cells)) > 300  # each a line of its own
    top = "document.querySelector('#{}').getBoundingClientRect().top"
    assert chromium.run(top.format("verdicts")) < 640  # before any warning
    assert chromium.run(top.format("verdicts")) < chromium.run(top.format("summary .note"))


def test_the_first_screen_is_the_summary_and_what_to_know(
    chromium: Chromium, plain_page: Path
) -> None:
    chromium.open(plain_page)
    bottom = "document.querySelector('#verdicts').getBoundingClientRect().bottom"
    assert chromium.run("document.querySelectorAll('#verdicts tbody tr').length") == 4
    assert chromium.run("document.querySelectorAll('#summary .note li').length") >= 2
    assert 0 < chromium.run(bottom) <= 900
    assert chromium.complaints() == []


def test_light_and_dark(chromium: Chromium, page: Path) -> None:
    colours = """[getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.body).color,
      getComputedStyle(document.querySelector('#plot-latency .title')).fill]"""
    chromium.open(page, dark=True)
    dark = chromium.run(colours)
    assert dark[1] == dark[2]
    chromium.run("document.getElementById('theme').click()")
    light = chromium.run(colours)
    assert light[1] == light[2] and not set(light) & set(dark)
    chromium.open(page)
    assert chromium.run(colours) == light


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
        chromium.open(page, dark=dark)
        assert min(chromium.run(script)) >= 4.5


def test_it_prints_light_and_comes_back(chromium: Chromium, page: Path) -> None:
    chromium.open(page, dark=True)
    ink = "getComputedStyle(document.body).color"
    before = chromium.run(ink)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    printed = chromium.run(f"[{ink}, getComputedStyle(document.querySelector('.title')).fill]")
    assert printed[0] == printed[1] != before
    assert chromium.pdf(**A4).startswith(b"%PDF")
    chromium.open(page, dark=True)
    assert chromium.run(ink) == before
    assert chromium.complaints() == []


@pytest.mark.parametrize("number", [1, 4])
def test_a_department_is_one_page_of_a4(chromium: Chromium, plain_page: Path, number: int) -> None:
    chromium.open(plain_page)
    chromium.run(f"location.hash = 'department-{number}'")
    chromium.run(f"document.querySelector('#department-{number} .to-print a').click()")
    chromium.wait(f"document.getElementById('sheet-{number}').checkVisibility()")
    # Alone on the page, with the first table's verdict.
    shown = "[...document.querySelectorAll('main > section')].filter((e) => e.checkVisibility())"
    assert chromium.run(f"{shown}.map((e) => e.id)") == [f"sheet-{number}"]
    row = f"document.querySelectorAll('#verdicts tbody tr')[{number - 1}]"
    verdict = chromium.run(f"{row}.cells[1].querySelector('span span').textContent")
    text = chromium.run(f"document.getElementById('sheet-{number}').innerText")
    assert verdict in text and "Not a medical device" in text
    sheet = chromium.pdf(**A4)
    assert len(re.findall(rb"/Type\s*/Page\b", sheet)) == 1
    chromium.run("document.querySelector('.sheet:target .back a').click()")
    chromium.wait(f"document.getElementById('department-{number}').checkVisibility()")
    assert len(re.findall(rb"/Type\s*/Page\b", chromium.pdf(**A4))) > 4


@pytest.mark.parametrize("paper", [695, 717], ids=["A4", "US letter"])  # CSS px between margins
def test_nothing_is_wider_than_the_paper(chromium: Chromium, plain_page: Path, paper: int) -> None:
    chromium.open(plain_page, width=paper)
    chromium.call("Emulation.setEmulatedMedia", media="print")
    wide = f"""[...document.querySelectorAll('main *')]
      .filter((e) => e.getBoundingClientRect().right > {paper} + 1)
      .map((e) => `${{e.closest('[id]')?.id}} ${{e.tagName}} ${{e.getBoundingClientRect().right}}`)
    """
    assert chromium.run(wide) == []
    assert chromium.run("document.documentElement.scrollWidth") <= paper


def test_downloads_work_offline(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    chromium.open(page)
    chromium.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    chromium.run("document.querySelector('#verdicts .get[download$=\".json\"]').click()")
    file = tmp_path / "verdicts.json"
    deadline = time.monotonic() + 90
    while not file.exists():  # it has another name until it is whole
        assert time.monotonic() < deadline, [entry.name for entry in tmp_path.iterdir()]
        time.sleep(0.05)
    assert [row["department"] for row in json.loads(file.read_text())] == [t[0] for t in TASKS]
