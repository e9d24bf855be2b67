"""Step 6: the project's own study, seed by seed, for as long as there is time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from typing import Any

from benchmarks.gpu.given import Given
from benchmarks.study_table import first_screen
from lorkd_deploy import load_recipe
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.evidence.study import RECORD, StudyRecord, study
from lorkd_deploy.evidence.train import FOUNDATION
from lorkd_deploy.schema import write_part

METHODS = "foundation,mtl,mtl-kd,experts"
WORKERS = 4  # one GPU's, each with a thread


def run(given: Given) -> Iterator[dict[str, Any]]:
    recipe, changes = given.recipe()
    folder = given.work / "study"
    made = given.run / "teacher"
    if made.exists():  # by the step `decompose`, of the same recipe
        loaded = load_recipe(recipe, changes)
        shown = StudyRecord(recipe=loaded.model_dump(mode="json"), recipe_sha256=loaded.sha256)
        write_part(folder / RECORD, shown)
        if not (folder / FOUNDATION / "teacher").exists():
            shutil.copytree(made, folder / FOUNDATION / "teacher")
    for seeds in count(1):
        asked = "mtl,experts" if given.rehearsal else METHODS
        workers = 1 if given.rehearsal else WORKERS
        result = study(recipe, folder, methods=asked, seeds=seeds, set=changes, workers=workers)
        yield result.model_dump(mode="json")
        if given.rehearsal:
            return


def lines(document: dict[str, Any]) -> Iterator[str]:
    yield first_screen(StudyResult.model_validate(document))
