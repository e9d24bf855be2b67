"""What a recipe says about a task's DICOM files: what they must be, and how they become 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from lorkd_deploy.errors import UsageError
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import canonical_json, sha256_bytes

# The code strings (VR CS) of the standard. Names of patients have other characters too, mostly.
Code = Annotated[str, Field(pattern=r"^[A-Z0-9 _]{1,16}$")]
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


class DicomRules(Part):
    """Stored values → modality LUT or rescale → VOI LUT or window → 8 bits, black to white.

    MONOCHROME1 is inverted, padding is black, colour spaces and palettes become RGB; overlays are
    not drawn in. Nothing is guessed: where a file leaves a choice, a key here decides, and without
    it the file is refused. The definition travels in every bundle and engine; `way` is its version.
    """

    way: Literal[1] = 1
    modality: tuple[Code, ...] = Field(
        default=(), description="modalities that the task answers, e.g. [CR, DX]; empty: any"
    )
    body_part: tuple[Code, ...] = Field(
        default=(), description="body parts examined, e.g. [CHEST]; empty: any, or none named"
    )
    photometric: tuple[str, ...] = Field(
        default=(),
        description=f"photometric interpretations, of {', '.join(GREY + COLOUR)}; empty: all these",
    )
    window: Literal["file", "full", "minmax"] | tuple[float, float] = Field(
        default="file",
        description="`file`: the file's own VOI LUT or window; [center, width] in the units after "
        "rescale (CT: HU); `full`: all values that the stored bits can have; `minmax`: from each "
        "image's smallest to its largest value",
    )
    view: int | None = Field(
        default=None,
        ge=1,
        description="which of the file's VOI LUTs and windows, counted from 1, LUTs first",
    )
    frame: int | Literal["middle"] | None = Field(
        default=None, description="which frame of a multi-frame file, counted from 1, or `middle`"
    )

    @model_validator(mode="after")
    def _sensible(self) -> DicomRules:
        unknown = sorted(set(self.photometric) - {*GREY, *COLOUR})
        if unknown:
            raise ValueError(f"no such photometric interpretation is read: {', '.join(unknown)}")
        if isinstance(self.window, tuple) and self.window[1] < 1:
            raise ValueError("the width of a window is at least 1")
        if self.view is not None and self.window != "file":
            raise ValueError("view chooses among the file's windows: it needs window: file")
        if isinstance(self.frame, int) and self.frame < 1:
            raise ValueError("frames are counted from 1")
        return self

    def overridden(self, keys: Mapping[str, Any]) -> DicomRules:
        """These rules with other values for some keys; raises `UsageError` for what is none."""
        try:
            return DicomRules.model_validate(self.model_dump() | dict(keys))
        except ValidationError as exc:
            fault = exc.errors()[0]
            place = ".".join(str(part) for part in fault["loc"]) or "rules"
            raise UsageError(
                f"--dicom {place}: {fault['msg']}",
                fix=f"known: {', '.join(key for key in DicomRules.model_fields if key != 'way')}",
            ) from exc

    @property
    def sha256(self) -> str:
        """Hash of the definition."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))


def to_write(key: str, example: str) -> str:
    """What to do where a rule is missing."""
    return (
        f"write {key}: {example} into the task's data.dicom in the recipe, "
        f"or give --dicom {key}={example.replace(' ', '')}"
    )
