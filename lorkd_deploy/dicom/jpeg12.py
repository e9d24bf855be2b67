"""JPEG with 12 bits a value, by gdcm.

pydicom's own plug-in of gdcm refuses them (3.0.2); gdcm 3.2 decodes them to the values that dcmtk
gives, which a test compares.
"""

from __future__ import annotations

from typing import Any


def decode_frame(frame: bytes, runner: Any) -> bytes:
    """A decoding plug-in of pydicom's: one compressed frame → its values, uint16 little endian."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.MONOCHROME2
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    syntax = gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4)
    image.SetTransferSyntax(syntax)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, runner.bits_stored, runner.bits_stored - 1, 0))
    values = image.GetBuffer()
    if values is None:
        raise ValueError("gdcm could not decode the frame")
    decoded: bytes = values.encode("utf-8", "surrogateescape")
    return decoded


def is_available(uid: str) -> bool:
    """Asked by pydicom; whether gdcm is installed was seen before."""
    return True


DECODER_DEPENDENCIES = {"1.2.840.10008.1.2.4.51": ("gdcm",)}
