"""The 21 real files' pixels by other people's programs: dcmtk and gdcm, never the decoder used."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def by_dcmtk(file: Path, decoder: str, tmp_path: Path, *arguments: str) -> Any:
    """The picture that dcmtk's `dcm2pnm` makes of a file unpacked by another decoder."""
    plain, out = tmp_path / "plain.dcm", tmp_path / "oracle.pnm"
    if decoder == "gdcm":
        unpacked_by_gdcm(file, plain)
    else:
        subprocess.run([decoder, str(file), str(plain)], check=True, capture_output=True)
    draw = ["dcm2pnm", "-O", *arguments, str(plain), str(out)]
    subprocess.run(draw, check=True, capture_output=True)
    picture = np.asarray(Image.open(out)).astype(int)
    grey = picture.ndim == 3 and (picture == picture[..., :1]).all()
    return picture[..., 0] if grey else picture


def unpacked_by_gdcm(file: Path, plain: Path) -> None:
    import gdcm

    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(file))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ExplicitVRLittleEndian))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(plain))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


# The rule that a file needs, dcm2pnm's words for the same, and the largest difference: dcmtk cuts
# a windowed value off where we round it, and its YBR to RGB works in integers.
REAL = {
    "693_J2KI": ("gdcm", {}, ["+Wi", "1"], 1),
    "693_UNCR": ("gdcm", {}, ["+Wi", "1"], 1),
    "CT_small": ("gdcm", {"window": (40, 400)}, ["+Ww", "40", "400"], 1),
    "JPGExtended": ("dcmdjpeg", {"window": "full"}, [], 1),
    "JPGLosslessP14SV1_1s_1f_8b": ("dcmdjpeg", {}, ["+Wi", "1"], 1),
    "MR2_J2KI": ("gdcm", {}, ["+Wi", "1"], 1),
    "MR_small_RLE": ("dcmdrle", {}, ["+Wi", "1"], 1),
    "MR_small_jpeg_ls_lossless": ("dcmdjpls", {}, ["+Wi", "1"], 1),
    "OBXXXX1A_rle_2frame": ("dcmdrle", {"frame": 2}, ["+F", "2"], 0),
    "RG1_J2KI": ("gdcm", {}, ["+Wi", "1"], 1),
    "RG3_J2KR": ("gdcm", {}, ["+Wi", "1"], 1),
    "US1_J2KR": ("gdcm", {}, [], 0),
    "emri_small_RLE": ("dcmdrle", {"frame": 3, "window": "full"}, ["+F", "3"], 1),
    "emri_small_jpeg_ls_lossless": ("dcmdjpls", {"frame": 3, "window": "full"}, ["+F", "3"], 1),
    "examples_overlay": ("gdcm", {"view": 1}, ["+Wi", "1"], 1),
    "examples_palette": ("gdcm", {}, [], 0),
    "examples_rgb_color": ("gdcm", {}, [], 0),
    "examples_ybr_color": ("gdcm", {"frame": 7}, ["+F", "7"], 2),
    "mlut_18": ("gdcm", {"window": "full"}, [], 1),
    "vlut_04": ("gdcm", {}, ["+Wl", "1"], 0),
}
