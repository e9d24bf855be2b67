"""`lorkd data split`: what it writes passes the check."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import check_data
from lorkd_deploy.cli import main
from lorkd_deploy.datacheck.division import split_data
from lorkd_deploy.errors import DataError, UsageError
from tests.datacheck.planted import KINDS, copied, pictures

RECIPE = """
name: scans
data_folder: {folder}
preprocess: {{size: 64}}
departments: [{{name: lungs, tasks: [{{name: scan, data: {data}}}]}}]
"""


def folder_of(tmp_path: Path) -> Path:
    """150 textures by class and patient, three each; 25 have a copy at another patient."""
    root = tmp_path / "scans"
    originals = pictures(150, seed=3)
    copies = [copied(image, KINDS[n % 5]) for n, image in enumerate(originals[:25])]
    for n, image in enumerate([*originals, *copies]):
        place = root / ("benign" if n // 3 % 3 else "malign") / f"p{n // 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{n}.png")
    return root


@pytest.mark.thorough
def test_a_folder_is_split_without_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path)
    out = tmp_path / "lists.csv"
    command = ["data", "split", str(root), "--out", str(out), "--shares", "60,20,20", "--json"]
    assert main([*command, "--quiet"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["twins"] == 50 and sum(made["images"].values()) == 175
    rows = list(csv.DictReader(out.open()))
    splits = defaultdict(set)
    for row in rows:
        splits[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    shares = [np.mean([row["split"] == s for row in rows]) for s in ("train", "val", "test")]
    assert np.allclose(shares, [0.6, 0.2, 0.2], atol=0.08)
    data = "{source: csv, path: lists.csv, root: scans, group: group}"
    (tmp_path / "r.yaml").write_text(RECIPE.format(folder=tmp_path, data=data))
    check = check_data(tmp_path / "r.yaml")
    assert check.leaks == ()
    before = out.read_bytes()
    assert main([*command, "--quiet"]) == 0 and out.read_bytes() == before


def test_a_csv_keeps_its_columns_and_its_patients(tmp_path: Path) -> None:
    images = pictures(40, seed=4)
    rows = ["file;dx;who;age"]
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        rows.append(f"{n}.png;{'xy'[n % 2]};{n // 4};{n}")
    (tmp_path / "scans.csv").write_text("\n".join(rows))
    names = {"group": "who", "image": "file", "label": "dx"}
    made = split_data(tmp_path / "scans.csv", tmp_path / "lists.csv", **names)
    assert made.groups == 10 and made.twins == 0
    found = list(csv.DictReader((tmp_path / "lists.csv").open()))
    assert [row["age"] for row in found] == [str(n) for n in range(40)]
    (tmp_path / "7.png").unlink()
    with pytest.raises(DataError, match=r"1 of 40 files are missing, the first '7.png'"):
        split_data(tmp_path / "scans.csv", tmp_path / "lists.csv", **names)
    with pytest.raises(DataError, match="`split` or `cluster` already"):
        split_data(tmp_path / "lists.csv", tmp_path / "again.csv", **names)
    with pytest.raises(UsageError):
        split_data(tmp_path / "scans.csv", tmp_path / "x.csv", shares=(1, 0, 1), **names)
    with pytest.raises(DataError, match="folders of classes"):
        split_data(tmp_path, tmp_path / "x.csv")
