"""A report in a real browser: weight, first paint, axe-core's findings, and pictures of it.

    python benchmarks/report_page.py RUN --axe node_modules/axe-core/axe.min.js

Opens `RUN/report.html` in headless Chromium, light, dark, 360 px wide and in print, and each
department's sheet; axe-core, from npm, is run in every one of them. Each of the paints is of a page
that is opened anew. Writes benchmarks/results/report_page.json and report_page.md; with
`--pictures docs/assets/report` those that the documentation shows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorkd_deploy.machine.environment import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reporting.chromium import Chromium, browser, find

ROUNDS = 21
RESULTS = Path(__file__).parent / "results"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
AXE = (
    "axe.run().then(r => r.violations.map("
    "v => ({id: v.id, impact: v.impact, nodes: v.nodes.map(n => n.target.join(' '))})))"
)
LIMIT = 500  # ms to the first paint
BYTES = 1_200_000


def paints(page: Chromium, report: Path) -> list[float]:
    """ms from navigation to the first contentful paint; the first one fills the disk cache."""
    found = []
    for _ in range(ROUNDS + 1):
        page.open(report)
        page.wait(PAINT)
        found.append(float(page.run(PAINT)))
    return found[1:]


def views(page: Chromium, report: Path) -> Iterator[str]:
    """The page in each form that a reader has, named."""
    page.open(report)
    yield "light"
    page.open(report, dark=True)
    yield "dark"
    page.open(report, width=360, height=900)
    yield "360 px"
    page.open(report)
    page.call("Emulation.setEmulatedMedia", media="print")
    yield "print"
    page.open(report)
    for name in page.run("[...document.querySelectorAll('.sheet')].map(e => e.id)"):
        page.run(f"location.hash = {name!r}")
        page.wait(f"document.getElementById({name!r}).checkVisibility()")
        yield name


def pictures(page: Chromium, report: Path, folder: Path) -> None:
    """The first screen light and dark, on a telephone, and the last department's printed sheet."""
    for name, form in (
        ("light", {"height": 900}),
        ("dark", {"height": 900, "dark": True}),
        ("360", {"width": 360, "height": 900}),
    ):
        page.open(report, **form)  # type: ignore[arg-type]
        page.screenshot(folder / f"report-{name}.png")
    page.open(report, width=695, height=1024)
    sheet = page.run("[...document.querySelectorAll('.sheet')].at(-1).id")
    page.run(f"location.hash = {sheet!r}")
    page.call("Emulation.setEmulatedMedia", media="print")
    page.screenshot(folder / "report-print.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--axe", type=Path, required=True, help="axe-core's axe.min.js")
    parser.add_argument("--pictures", type=Path, help="where to put the documentation's")
    given = parser.parse_args()
    report, program = (given.run / "report.html").resolve(), find()
    if program is None:
        print("error: there is no Chromium here", file=sys.stderr)
        return 1
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as profile, browser(program, Path(profile)) as page:
        version = page.call("Browser.getVersion")["product"]
        times = paints(page, report)
        found: dict[str, list[dict[str, Any]]] = {}
        for name in views(page, report):
            page.run(given.axe.read_text(encoding="utf-8") + ";0")
            found[name] = page.run(AXE)
        axe = page.run("axe.version")
        complaints = page.complaints()
        if given.pictures:
            pictures(page, report, given.pictures)
    result = {
        "environment": environment().model_dump(mode="json"),
        "versions": {"browser": version, "axe-core": axe},
        "protocol": f"{ROUNDS} openings from disk, one after the other, after one that isn't "
        "counted; first contentful paint",
        "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
        "bytes": report.stat().st_size,
        "first_paint_ms": {
            "median": round(statistics.median(times), 1),
            "largest": round(max(times), 1),
            "all": [round(ms, 1) for ms in times],
        },
        "axe": found,
        "complaints": complaints,
    }
    (RESULTS / "report_page.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = _markdown(result)
    (RESULTS / "report_page.md").write_text(text, encoding="utf-8")
    print(text)
    fine = not any(found.values()) and not complaints and result["bytes"] <= BYTES
    return 0 if fine and statistics.median(times) < LIMIT else 1


def _markdown(result: dict[str, Any]) -> str:
    paint, axe = result["first_paint_ms"], result["axe"]
    load = " before, ".join(str(one) for one in result["load_average"])
    rows = [
        f"| {name} | {', '.join(v['id'] for v in found) or 'none'} |" for name, found in axe.items()
    ]
    return "\n".join(
        [
            "# The report in a browser",
            "",
            f"`python benchmarks/report_page.py` on the demo's report: {result['bytes'] / 1e6:.2f} "
            f"MB, first paint {paint['median']:.0f} ms (median of {ROUNDS} openings from disk; the "
            f"largest {paint['largest']:.0f}), {len(result['complaints'])} complaints in the "
            "console.",
            "",
            f"| axe-core {result['versions']['axe-core']} in | violations |",
            "|---|---|",
            *rows,
            "",
            f"{result['versions']['browser']}, {result['environment']['cpu']}, load average {load} "
            "after.",
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
