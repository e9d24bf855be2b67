"""Small image files with the CSV that lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = [  # name, label, split, patient, age, sex
    ("a/1.png", "benign", "train", "P1", "34", "f"),
    ("a/2.png", "malign", "Training", "P2", "51", "m"),
    ("a/3.png", "benign", "train", "P3", "68", ""),
    ("b/4.png", "malign", "train", "", "77", "f"),
    ("b/5.png", "benign", "valid", "P5", "40", "m"),
    ("b/6.png", "malign", "val", "", "65", "m"),
    ("c d/7.png", "benign", "TEST", "P7", "n/a", "f"),
    ("c d/8.png", "malign", "test", "P8", "39.5", "f"),
]
HEADER = ("path", "label", "split", "patient", "age", "sex")


def images(folder: Path, names: Sequence[str]) -> None:
    """A plain grey image for each name: image n is n grey."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 8), number, np.uint8)).save(folder / name)


def listed(folder: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """`ROWS` as images and as `folder/list.csv`."""
    images(folder, [row[0] for row in ROWS])
    text = "\n".join(delimiter.join(row) for row in (HEADER, *ROWS)) + "\n"
    (folder / "list.csv").write_bytes(text.encode(encoding))
    return folder / "list.csv"
