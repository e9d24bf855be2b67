"""21 real DICOM files: our pixels against dcmtk's and gdcm's, or the sentence that refuses them.

    LORKD_DICOM=FOLDER python benchmarks/dicom_files.py

FOLDER has pydicom's test files of these names. Needs the extra `dicom` and Debian's dcmtk. A file
is unpacked by dcmtk's or gdcm's program, never by the decoder that lorkd uses, and drawn by dcm2pnm
with the same frame and window. Writes benchmarks/results/dicom_files.json and .md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy._version import __version__
from lorkd_deploy.dicom.header import opened, read_header
from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.dicom.stored import layout_of
from lorkd_deploy.dicom.syntaxes import name_of
from lorkd_deploy.errors import ImageError
from lorkd_deploy.storage import sha256_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.dicom.oracle import REAL, by_dcmtk

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("pydicom", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm", "pillow", "numpy")


def measure(file: Path) -> dict[str, Any]:
    """What a file is, what becomes of it without a rule, and how its pixels compare."""
    with opened(file) as stream:
        layout = layout_of(read_header(stream))
    found: dict[str, Any] = {
        "file": file.name,
        "sha256": sha256_file(file),
        "transfer_syntax": name_of(layout.syntax),
        "photometric": layout.photometric,
        "pixels": f"{layout.columns} × {layout.rows} × {layout.frames}, {layout.stored} bits",
        "without_rule": refused(file, DicomRules()),
    }
    if file.stem not in REAL:
        return found
    decoder, rules, words, _ = REAL[file.stem]
    pixels = read_dicom(file, DicomRules(**rules)).pixels.astype(int)
    with tempfile.TemporaryDirectory() as folder:
        oracle = by_dcmtk(file, decoder, Path(folder), *words)
    away = np.abs(oracle - pixels)
    return found | {
        "rule": rules,
        "oracle": f"{decoder}, dcm2pnm",
        "equal": float((away == 0).mean()),
        "largest_difference": int(away.max()),
        "values": len(np.unique(pixels)),
    }


def refused(file: Path, rules: DicomRules) -> str | None:
    """The sentence with which a file is refused, if it is."""
    try:
        read_dicom(file, rules)
    except ImageError as exc:
        return f"{exc.what}: {exc.fix}"
    return None


def row(one: dict[str, Any]) -> str:
    """A line of the table."""
    cells = [one["file"].removesuffix(".dcm"), one["transfer_syntax"], one["photometric"],
             one["pixels"]]  # fmt: skip
    if "equal" not in one:
        return "| " + " | ".join([*cells, "", "", f"refused: {one['without_rule']}"]) + " |"
    rule = ", ".join(f"{key}: {value}" for key, value in one["rule"].items())
    if said := one["without_rule"]:
        rule += f" (without: {said.partition(':')[0]})"
    away = f"{100 * one['equal']:.2f} % equal, at most {one['largest_difference']} away"
    return "| " + " | ".join([*cells, rule, one["oracle"], away]) + " |"


def main() -> None:
    folder = Path(os.environ["LORKD_DICOM"])
    files = [measure(file) for file in sorted(folder.glob("*.dcm"))]
    said = subprocess.run(["dcm2pnm", "--version"], capture_output=True, text=True, check=False)
    versions = {"lorkd-deploy": __version__, "dcmtk": said.stdout.split()[2].lstrip("v")}
    versions |= {name: version(name) for name in PACKAGES}
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    document = {"date": when, "versions": versions, "files": files}
    (RESULTS / "dicom_files.json").write_text(json.dumps(document, indent=1) + "\n")
    read = [one for one in files if "equal" in one]
    equal = [one for one in read if one["equal"] == 1]
    near = [one for one in read if one["largest_difference"] == 1]
    far = [f"{one['file']} ({one['largest_difference']})" for one in read
           if one["largest_difference"] > 1]  # fmt: skip
    lines = [
        "# 21 real DICOM files: pixels, or the sentence",
        "",
        f"Written by `benchmarks/dicom_files.py` on {when[:10]}: "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "",
        f"{len(read)} of {len(files)} files are read: {len(equal)} with every pixel equal to the "
        f"oracle's, {len(near)} with none more than one of 256 grey levels away (dcm2pnm cuts off "
        "where the standard's formula is rounded here), more than that: "
        f"{', '.join(far) or 'none'} (its YBR to RGB works in integers). "
        f"{sum(one['without_rule'] is not None for one in read)} of them leave a choice and are "
        "refused until a rule makes it. The oracle never used the decoder that lorkd used; of JPEG "
        "2000 both are OpenJPEG, in different builds.",
        "",
        "| file | transfer syntax | photometric | columns, rows, frames | rule | oracle | pixels |",
        "|---|---|---|---|---|---|---|",
        *map(row, files),
    ]
    (RESULTS / "dicom_files.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
