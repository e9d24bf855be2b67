"""The table of what a new data set learns from, in docs/results.md.

    python benchmarks/transfer_table.py [TRANSFER…]

Each TRANSFER, a folder of `lorkd transfer`, is kept as benchmarks/results/FOLDER.json and .md first
(`transfers/transfer-chest` as transfer-chest), without this machine's paths. Then one table of all
that are kept is written into docs/results.md, between its marks. Nothing is computed here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.study_table import KEPT, PAGE, difference, fill, without_paths
from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.pages.page import data_warnings, seeds_in_words
from lorkd_deploy.evidence.transfer.page import as_markdown, transfer_page
from lorkd_deploy.evidence.transfer.result import RESULT, ShotsResult, TransferResult
from lorkd_deploy.reporting.markdown import plain
from lorkd_deploy.schema import read_part, write_part

METRIC = "auc"
WHERE = "run `lorkd transfer` again"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transfers", nargs="*", type=Path, help="folders of `lorkd transfer`")
    for folder in parser.parse_args().transfers:
        found = read_part(folder / RESULT, TransferResult, BundleError, WHERE)
        write_part(KEPT / f"{folder.name}.json", without_paths(found))
    parts = []
    for file in sorted(KEPT.glob("transfer-*.json")):
        result = read_part(file, TransferResult, BundleError, WHERE)
        text = as_markdown(transfer_page(result))
        file.with_suffix(".md").write_text(text, encoding="utf-8")
        parts.append(table(result, file.stem))
    fill(PAGE, "transfer", "\n".join(parts))


def table(result: TransferResult, name: str) -> str:
    """A row for each start, with the first one's AUC minus it, for each number of images."""
    shots = result.results
    head = [f"{result.data['name'].removesuffix('.npz')}: start"]
    head += [f"AUC, {of.title.lower()} | `{result.first}` minus it" for of in shots]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * (1 + 2 * len(shots))}"]
    for start in result.starts:
        cells = [f"**`{start}`**" if start == result.first else f"`{start}`"]
        cells += [cell for of in shots for cell in cells_of(of, start, result.first)]
        lines.append(f"| {' | '.join(cells)} |")
    images = " and ".join(str(of.images) for of in shots)
    shared = [f"- {plain(text)}" for text in data_warnings(result.check, "TRANSFER")]
    said = (
        f"{result.test_images} test images, {len(result.classes)} classes, {images} training "
        f"images, {seeds_in_words(result.seeds)}; {result.seconds / 60:.0f} minutes of training, a "
        f"CPU thread each; {result.created[:10]}: [all of it](../benchmarks/results/{name}.md)."
    )
    return "\n".join([*lines, "", said, "", *([*shared, ""] if shared else [])])


def cells_of(of: ShotsResult, start: str, first: str) -> tuple[str, str]:
    """A start's AUC, and the first's minus it with its interval and word."""
    value = f"{of.comparison.figure(start, None, METRIC).estimate.value:.3f}"
    if start == first:
        return value, ""
    return value, difference(of.comparison.difference(start, None, METRIC))


if __name__ == "__main__":
    main()
