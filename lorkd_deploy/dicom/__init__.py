"""From a DICOM file to 8-bit pixels: one way for training and predict, without torch.

`rules.py` is what a recipe says of it, `syntaxes.py` which encodings are read and by which
plug-in, `header.py` reads the header, `stored.py` the stored values, `pixels.py` makes 8 bits of
them. pydicom and its decoders are the extra `dicom`.
"""

from __future__ import annotations

from lorkd_deploy.dicom.header import DicomHeader, is_dicom
from lorkd_deploy.dicom.rules import DicomRules

__all__ = ["DicomHeader", "DicomRules", "is_dicom"]
