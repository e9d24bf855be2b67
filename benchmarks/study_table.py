"""The tables of README and docs/results.md, from the results of the project's own studies.

    python benchmarks/study_table.py [STUDY] [--name full-data]

With STUDY, a folder of `lorkd study` with whatever methods and seeds, its result is kept as
benchmarks/results/study-NAME.json and .md first, without this machine's paths. Then the tables are
written into the pages, between their marks: README's and two of docs/results.md for the main one
(seven-tasks), one of docs/results.md for another. Nothing is computed here: figures, intervals,
words and the number of seeds that would show a difference are the result's.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, TypeVar

from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.analysis.comparison import Difference
from lorkd_deploy.evidence.analysis.statistics import Estimate
from lorkd_deploy.evidence.methods.table import METHODS
from lorkd_deploy.evidence.pages.page import (
    data_warnings,
    seeds_in_words,
    study_page,
    verdicts_in_words,
    warnings,
)
from lorkd_deploy.evidence.pages.report import as_markdown
from lorkd_deploy.evidence.pages.tables import interval, others
from lorkd_deploy.evidence.result import RESULT, StudyResult
from lorkd_deploy.evidence.transfer.result import TransferResult
from lorkd_deploy.reporting.markdown import plain
from lorkd_deploy.schema import read_part, write_part

ROOT = Path(__file__).parents[1]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
KEPT = ROOT / "benchmarks" / "results"
MAIN = "seven-tasks"
MARKS = r"(<!-- {name}: begin; [^\n]*-->\n).*?(<!-- {name}: end -->)"
FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:,']+/)+")  # of an absolute path
METRICS = {"auc": "AUC", "accuracy": "accuracy"}
SAID = ("python", "torch", "onnxruntime", "lorkd-deploy")  # of the software
Result = TypeVar("Result", StudyResult, TransferResult)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, help="the study's folder")
    parser.add_argument("--name", default=MAIN, help="which of our studies it is")
    given = parser.parse_args()
    kept = KEPT / f"study-{given.name}.json"
    if given.study is not None:
        found = read_part(given.study / RESULT, StudyResult, BundleError, "run `lorkd study` again")
        write_part(kept, without_paths(found))
    result = read_part(kept, StudyResult, BundleError, "run `lorkd study` again")
    kept.with_suffix(".md").write_text(as_markdown(study_page(result)), encoding="utf-8")
    if given.name == MAIN:
        fill(README, "results", first_screen(result))
        fill(PAGE, "study", every_task(result))
    else:
        fill(PAGE, given.name, over_tasks(result, given.name))


def fill(page: Path, name: str, table: str) -> None:
    """Put `table` between the page's marks of that name."""
    page.write_text(with_table(page.read_text("utf-8"), name, table), encoding="utf-8")


def without_paths(result: Result) -> Result:
    """The same without folders of the machine that it was made on."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(one) for key, one in value.items()}
        if isinstance(value, list):
            return [bare(one) for one in value]
        return FOLDERS.sub("", value) if isinstance(value, str) else value

    changed = {"recipe": bare(result.recipe), "failed": bare(result.failed)}
    return result.model_copy(update=changed)


def with_table(text: str, name: str, shown: str) -> str:
    """`text` with `shown` between its two marks of that name."""
    marks = re.compile(MARKS.format(name=name), re.DOTALL)
    changed, found = marks.subn(lambda place: f"{place[1]}{shown}{place[2]}", text)
    if found != 1:
        raise ValueError(f"the page has no marks for {name}, or has them twice")
    return changed


def without_changed(result: StudyResult) -> StudyResult:
    """The same without methods whose recipe was changed, which the pages have no row for."""
    plain = tuple(name for name in result.variants if name in METHODS)
    return result.model_copy(update={"variants": plain})


def first_screen(result: StudyResult) -> str:
    """The README's: a row for each method, and below it what a figure holds for."""
    result = without_changed(result)
    lines = [answer(result), "", *means(result, costs=True)]
    lines += [
        "",
        " ".join(
            [
                *warnings(result.seeds, {}),
                f"Means over {len(result.tasks)} tasks of public images and over "
                f"{seeds_in_words(result.seeds)}, on the whole test splits; in brackets the 95 % "
                "interval over images and seeds. Every way saw the same images, as many of each "
                "task, on the same schedule. Parameters and ms (one image, one CPU thread, ONNX "
                f"Runtime) are those of what one task deploys. Measured {result.created[:10]}: "
                "[task by task, versions, what more seeds would show](docs/results.md), [all of it]"
                "(benchmarks/results/study-seven-tasks.md).",
            ]
        ),
        "",
    ]
    return "\n".join(lines)


def means(result: StudyResult, *, costs: bool) -> list[str]:
    """A table's lines: a row for each method over all tasks, with what it `costs` to deploy."""
    first = result.first
    head = ["method", *(f"mean {title} | {first} minus it" for title in METRICS.values())]
    head += ["parameters, one task", "ms"] if costs else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * (len(head) + len(METRICS))}"]
    for name in result.variants:
        title = f"`{name}`: {METHODS[name].title}"
        cells = [f"**{title}**" if name == first else title]
        for metric in METRICS:
            cells.append(f"{result.comparison.figure(name, None, metric).estimate.value:.3f}")
            found = result.comparison.difference
            cells.append("" if name == first else difference(found(name, None, metric)))
        if costs:
            cost = result.costs[name]
            latency = "–" if cost.latency is None else f"{cost.latency:.1f}"
            cells += [f"{cost.parameters / 1e6:.2f} M", latency]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def over_tasks(result: StudyResult, name: str) -> str:
    """For docs/results.md, of a study beside the main one."""
    result = without_changed(result)
    said = [
        answer(result),
        f"{seeds_in_words(result.seeds)}, 95 % intervals over images and seeds.",
        missed(result),
        f"{result.seconds / 3600:.1f} hours of training, a CPU thread each; {result.created[:10]}: "
        f"[all of it](../benchmarks/results/study-{name}.md).",
    ]
    return "\n".join([*means(result, costs=False), "", " ".join(filter(None, said)), ""])


def answer(result: StudyResult) -> str:
    """What is shown over all tasks, by the methods' titles; what two metrics show, once."""
    called = {name: f'"{METHODS[name].title}"' for name in result.variants}
    of: dict[str, list[str]] = {}
    for metric, title in METRICS.items():
        of.setdefault(verdicts_in_words(result, metric, called), []).append(title)
    return " ".join(f"In mean {' and '.join(m)} over all tasks, {said}." for said, m in of.items())


def difference(found: Difference) -> str:
    """A cell: the difference with its interval, and the word."""
    return f"{shown(found.estimate, signed=True)}, *{found.verdict}*"


def software(result: StudyResult) -> str:
    """What of the software is worth a place in a line."""
    return ", ".join(f"{name} {result.software[name]}" for name in SAID if name in result.software)


def missed(result: StudyResult) -> str:
    """For docs/results.md: what isn't shown, and how many seeds would show it; nothing where all
    is."""
    if len(result.seeds) < 2:
        return " ".join(warnings(result.seeds, {}))
    said = []
    for metric, title in METRICS.items():
        differences = [result.comparison.difference(n, None, metric) for n in others(result)]
        if told := [_needed(one) for one in differences if one.verdict == "not shown"]:
            said.append(f"in {title} {', '.join(told)}")
    if not said:
        return ""
    return (
        "Over all tasks these differences aren't shown; in brackets how many seeds would show "
        "them, if difference and spread stayed as they are ([how that is reckoned]"
        f"(concepts/measuring.md)): {'; '.join(said)}."
    )


def _needed(found: Difference) -> str:
    seeds = "more seeds alone wouldn't" if found.needed is None else f"{found.needed} seeds"
    return f"against `{found.second}` ({seeds})"


def every_task(result: StudyResult) -> str:
    """The AUC of each task, for docs/results.md, with what differs from the first; below it what
    the README's table leaves out."""
    result = without_changed(result)
    tasks = result.tasks_of("auc")
    lines = [
        f"| AUC | {' | '.join(tasks)} |",
        f"|---|{'---|' * len(tasks)}",
    ]
    for name in result.variants:
        cells = [f"`{name}`"]
        for task in tasks:
            figure = shown(result.comparison.figure(name, task, "auc").estimate)
            if name != result.first:
                word = result.comparison.difference(name, task, "auc").verdict
                figure += "" if word == "not shown" else f", {result.first} *{word}*"
            cells.append(figure)
        lines.append(f"| {' | '.join(cells)} |")
    shared = [f"- {plain(text)}" for text in data_warnings(result.check, "STUDY")]
    lines += [
        "",
        f"{seeds_in_words(result.seeds)}; 95 % intervals over images and seeds; p-values corrected "
        "over the tasks, and no word where no difference is shown. [The whole study]"
        "(../benchmarks/results/study-seven-tasks.md) has accuracy, balanced accuracy, kappa of "
        "grades, costs, disentanglement and how it was done; "
        "`python benchmarks/study_table.py STUDY` writes these tables.",
        "",
        *([*shared, ""] if shared else []),
        f"{missed(result)} {result.seconds / 3600:.1f} hours of training, a CPU thread each; "
        f"{result.created[:10]}, {software(result)}.".lstrip(),
        "",
    ]
    return "\n".join(lines)


def shown(estimate: Estimate, *, signed: bool = False) -> str:
    """A cell: the estimate, and its interval in brackets."""
    cell = interval(estimate, signed=signed)
    return cell.text if estimate.interval is None else f"{cell.text} ({cell.note})"


if __name__ == "__main__":
    main()
