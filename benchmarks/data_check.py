"""What `lorkd data check` finds on nine real sets, and how many planted leaks and false alarms.

    LORKD_DATA=FOLDER:FOLDER python benchmarks/data_check.py

FOLDER are those of the archives (MedMNIST's and others with its keys). Of each set 100 training
images, drawn by a seed, are copied in five ways and looked for among all training images. The
thresholds were chosen on copies of images that another seed draws, of knee, fundus, retina,
pneumonia and brain. False alarms are pairs across splits where every image's patient is known and
no patient is in two splits: of these sets knee alone.
Writes benchmarks/results/data_check.json and .md; no image leaves the machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from lorkd_deploy._version import __version__
from lorkd_deploy.arrays import I64
from lorkd_deploy.data import Split, open_data
from lorkd_deploy.data.npz import NpzData
from lorkd_deploy.datacheck.check import check_task
from lorkd_deploy.datacheck.common import Common
from lorkd_deploy.datacheck.pictures import Pictures, look
from lorkd_deploy.datacheck.twins import exact, near
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import TaskSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.datacheck.planted import KINDS, copied  # the copies that the tests plant

SETS = ("breastmnist_64", "pneumoniamnist", "retinamnist", "pbc_blood", "brain_mri", "knee_xray",
        "lung_ct_iqoth", "fundus_disease", "chest_ct_cancer")  # fmt: skip
PLANTED, SEED = 100, 1  # copies, and what draws them: 0 drew those that thresholds were chosen on
SEEN = Preprocess(size=64)
RESULTS = Path(__file__).with_name("results")


def archive_of(name: str) -> Path:
    """The file of a set, in one of the folders."""
    folders = [Path(folder) for folder in os.environ["LORKD_DATA"].split(os.pathsep)]
    return next(f / f"{name}.npz" for f in folders if (f / f"{name}.npz").exists())


def measure(name: str) -> dict[str, object]:
    """Everything of one set."""
    spec = NpzData(source="npz", path=str(archive_of(name)))
    data = open_data(spec)
    began = time.process_time()
    check = check_task(TaskSpec(name="set", data=spec), data, SEEN)
    seconds = time.process_time() - began
    train = look(data.train, SEEN, Silent())
    common = Common(train)
    chosen = np.random.default_rng(SEED).choice(len(train), PLANTED, replace=False)
    found = {}
    for kind in KINDS:
        copies = [copied(np.asarray(data.train.images[int(i)]), kind) for i in chosen]
        seen = look(Split(copies, np.zeros(PLANTED, np.int64)), SEEN, Silent())
        found[kind] = len(_hits(seen, train, chosen, common))
    return {
        "set": name,
        "images": [split.images for split in check.splits],
        "side": train.side,
        "groups_known": data.train.groups is not None,
        "cpu_s": round(seconds, 2),
        "findings": [finding.model_dump() for finding in check.findings],
        "planted_found": found,
    }


def _hits(seen: Pictures, train: Pictures, chosen: I64, common: Common) -> set[int]:
    """The copies that are found with their original, or with a picture that is the same as it."""
    found = set()
    for pairs in (exact(seen, train), near(seen, train, common, Silent())):
        same = (train.digests[pairs.second] == train.digests[chosen[pairs.first]]).all(axis=1)
        found |= set(pairs.first[same].tolist())
    return found


def main() -> None:
    rows = []
    for name in SETS:
        rows.append(measure(name))
        print(name, rows[-1]["planted_found"], rows[-1]["cpu_s"], file=sys.stderr, flush=True)
    result = {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "protocol": f"input {SEEN.size} px; {PLANTED} planted copies of each kind; CPU seconds on "
        "a machine busy with other work, one thread of BLAS",
        "sets": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (RESULTS / "data_check.json").write_text(text + "\n")
    (RESULTS / "data_check.md").write_text(markdown(result))


def markdown(result: dict[str, object]) -> str:
    """The tables, from the JSON alone."""
    lines = ["# What `lorkd data check` finds on nine real sets", "",
             f"{result['made']}, lorkd-deploy {result['version']}, NumPy {result['numpy']}, Python "
             f"{result['python']}; {result['protocol']}. By `benchmarks/data_check.py`.", "",
             "## Planted copies found, of 100 each", "",
             f"| set | px | images | {' | '.join(KINDS)} | CPU s of the check |",
             "|---|---|---|" + "---|" * (len(KINDS) + 1)]  # fmt: skip
    rows = result["sets"]
    assert isinstance(rows, list)
    for row in rows:
        found = " | ".join(str(row["planted_found"][kind]) for kind in KINDS)
        images = " / ".join(str(count) for count in row["images"])
        lines.append(f"| {row['set']} | {row['side']} | {images} | {found} | {row['cpu_s']} |")
    lines += ["", "## Findings", ""]
    for row in rows:
        lines.append(f"- **{row['set']}**")
        said = [f"  - {f['level']}: {f['says']}" for f in row["findings"]]
        lines += said or ["  - nothing"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
