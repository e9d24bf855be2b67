"""The README's table, from the result of the project's own study.

    python benchmarks/study_table.py [STUDY]

With STUDY, the folder of `lorkd study seven-tasks`, its result.json and study.md are copied to
benchmarks/results/study-seven-tasks.json and .md first. Then the table is written into the README,
between its two marks. Nothing is computed here: figures, intervals and words are the result's.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.methods.table import METHODS
from lorkd_deploy.evidence.page import lead, seeds_in_words
from lorkd_deploy.evidence.result import RESULT, StudyResult
from lorkd_deploy.evidence.statistics import Estimate
from lorkd_deploy.evidence.tables import interval
from lorkd_deploy.schema import read_part

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
KEPT = ROOT / "benchmarks" / "results" / "study-seven-tasks.json"
MARKS = re.compile(r"(<!-- results: begin; [^\n]*-->\n).*?(<!-- results: end -->)", re.DOTALL)
# The five that say the most, where a study has more.
FIRST = ("experts", "foundation", "mtl", "mtl-kd", "stl", "kf", "stl-kd")
ROWS = 5
METRIC = "auc"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, help="the study's folder")
    study = parser.parse_args().study
    if study is not None:
        shutil.copyfile(study / RESULT, KEPT)
        shutil.copyfile(study / "study.md", KEPT.with_suffix(".md"))
    result = read_part(KEPT, StudyResult, BundleError, "run `lorkd study` again")
    README.write_text(with_table(README.read_text("utf-8"), table(result)), encoding="utf-8")


def with_table(text: str, shown: str) -> str:
    """`text` with `shown` between its two marks."""
    changed, found = MARKS.subn(lambda marks: f"{marks[1]}{shown}{marks[2]}", text)
    if found != 1:
        raise ValueError("the page has no marks for results, or has them twice")
    return changed


def table(result: StudyResult) -> str:
    """The table and, below it, what it takes to judge it."""
    variants = [name for name in FIRST if name in result.variants][:ROWS]
    lines = [
        f"| | mean AUC | {result.first} minus it | in words | parameters, one task | ms |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(variants, key=result.variants.index):
        cost = result.costs[name]
        figure = result.comparison.figure(name, None, METRIC).estimate
        difference, word = "", ""
        if name != result.first:
            found = result.comparison.difference(name, None, METRIC)
            difference, word = _shown(found.estimate, signed=True), f"*{found.verdict}*"
        shown = f"**{METHODS[name].title}**" if name == result.first else METHODS[name].title
        latency = "–" if cost.latency is None else f"{cost.latency:.1f}"
        lines.append(
            f"| {shown} | {_shown(figure)} | {difference} | {word} "
            f"| {cost.parameters / 1e6:.2f} M | {latency} |"
        )
    software = ", ".join(f"{name} {version}" for name, version in result.software.items())
    lines += [
        "",
        f"{len(result.tasks)} tasks of public images, {seeds_in_words(result.seeds)}, test splits, "
        f"95 % intervals over images and seeds; {result.created[:10]}, {software}. {lead(result)} "
        "[All of it](benchmarks/results/study-seven-tasks.md), task by task, and "
        "[other results](docs/results.md).",
        "",
    ]
    return "\n".join(lines)


def _shown(estimate: Estimate, *, signed: bool = False) -> str:
    cell = interval(estimate, signed=signed)
    return cell.text if estimate.interval is None else f"{cell.text} ({cell.note})"


if __name__ == "__main__":
    main()
