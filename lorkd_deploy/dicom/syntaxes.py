"""Transfer syntaxes: how a file's pixels are encoded, and which plug-in of pydicom's decodes it.

One plug-in each, whatever else is installed, so that a file has the same pixels everywhere.
"""

from __future__ import annotations

from importlib.util import find_spec

from lorkd_deploy.errors import ImageError, RuntimeUnavailableError

_1 = "1.2.840.10008.1.2"
NATIVE = {_1, f"{_1}.1", f"{_1}.1.99", f"{_1}.2"}
DEFLATED = f"{_1}.1.99"
# Plug-in and the module that it needs; Pillow and pydicom's own RLE are always there.
DECODERS = {
    f"{_1}.4.50": ("pillow", "PIL"),
    f"{_1}.4.51": ("gdcm", "gdcm"),
    f"{_1}.4.57": ("gdcm", "gdcm"),
    f"{_1}.4.70": ("gdcm", "gdcm"),
    f"{_1}.4.80": ("pyjpegls", "jpeg_ls"),
    f"{_1}.4.81": ("pyjpegls", "jpeg_ls"),
    f"{_1}.4.90": ("pylibjpeg", "openjpeg"),
    f"{_1}.4.91": ("pylibjpeg", "openjpeg"),
    f"{_1}.4.201": ("pylibjpeg", "openjpeg"),
    f"{_1}.4.202": ("pylibjpeg", "openjpeg"),
    f"{_1}.4.203": ("pylibjpeg", "openjpeg"),
    f"{_1}.5": ("pydicom", "pydicom"),
}
RLE = f"{_1}.5"
EXTENDED = f"{_1}.4.51"
_PACKAGE = {"gdcm": "python-gdcm", "jpeg_ls": "pyjpegls", "openjpeg": "pylibjpeg-openjpeg"}
# What no plug-in reads: the beginning of the name, and what to do.
_REFUSED = {
    "MPEG": "a video: save the frame that is meant as an image of its own",
    "Fragmentable": "a video: save the frame that is meant as an image of its own",
    "HEVC": "a video: save the frame that is meant as an image of its own",
    "SMPTE": "a live video: save the frame that is meant as an image of its own",
    "JPIP": "the pixels are on a server: have the archive send them with the file",
}
CONVERT = "have the archive send it as Explicit VR Little Endian, or convert it by `gdcmconv --raw`"


def plug_in(uid: str) -> str:
    """The name of pydicom's decoding plug-in for a transfer syntax, empty for native pixels.

    Raises `ImageError` for a syntax that is not read at all, `RuntimeUnavailableError` where its
    plug-in isn't installed; the sentence names it.
    """
    if uid in NATIVE:
        return ""
    name = name_of(uid)
    if uid not in DECODERS:
        fix = next((fix for start, fix in _REFUSED.items() if name.startswith(start)), CONVERT)
        raise ImageError(f"the transfer syntax {name} is not read", fix=fix)
    plugin, module = DECODERS[uid]
    if module in _PACKAGE and find_spec(module) is None:
        raise RuntimeUnavailableError(
            f"the transfer syntax {name} needs the package {_PACKAGE[module]}, "
            "which is not installed",
            fix=f"python -m pip install {_PACKAGE[module]}, or the extra lorkd-deploy[dicom]",
        )
    return plugin


def name_of(uid: str) -> str:
    """The standard's name of a transfer syntax, or its number if it has none there."""
    from pydicom.uid import UID

    digits = bool(uid) and set(uid) <= set("0123456789.")
    return str(UID(uid).name) if digits else "(none)"
