"""The ONNX model that an engine was built from, made from the bundle: once, and again as proof.

Engines of one model differ from build to build; the model's bytes do not. So an engine's record
pins the model (`onnx_sha256`), and whoever has the bundle can make it again and compare.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, environment
from lorkd_deploy.deploy.calibration import calibration_images
from lorkd_deploy.deploy.graph import onnx_model
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.precisions.table import BASELINE, converted, precision_of
from lorkd_deploy.runtime import Probe, exporter
from lorkd_deploy.storage import sha256_bytes

# What a model's bytes depend on beside the bundle and its precision.
DEPENDS_ON = ("lorkd-deploy", "numpy", "onnx", "architecture")


class Origin(NamedTuple):
    """The model that an engine was built from, as far as it can be made here.

    `fused` is the expert's float32 model; `given` is the pinned one, that its target was given.
    `given` is None where `fault` says that the pin is wrong, or `not_here` why it can't be judged.
    """

    fused: bytes
    given: bytes | None
    fault: str | None = None
    not_here: str | None = None


def given_model(fused: bytes, bundle: Bundle, engine: str, precision: str, able: Probe) -> bytes:
    """What a target is given: `fused`, in the engine's precision where the target wants that.

    Raises what `precisions.table.converted` raises.
    """
    return converted(fused, precision, able, partial(calibration_images, bundle, engine))


def origin_of(artifact: Artifact, bundle: Bundle) -> Origin:
    """Make the model of `artifact` again, from its bundle or a part of it, and compare the pin.

    It is made with the name of the version and of the bundle that the engine was exported with:
    they stand in the model's metadata and may be others now.
    """
    fused = onnx_model(
        bundle,
        artifact.engine,
        version=artifact.environment.get("lorkd-deploy", __version__),
        bundle_sha256=artifact.bundle_sha256,
    )
    able = exporter(artifact.target).probe()
    if artifact.precision != BASELINE and not able.can_build:
        why = f"what {artifact.target} takes for {artifact.precision} is not known here"
        return Origin(fused, None, not_here=f"{why}: {able.reason}")
    try:
        given = given_model(fused, bundle, artifact.engine, artifact.precision, able)
    except LorkdError as exc:
        return Origin(fused, None, not_here=exc.what)
    if sha256_bytes(given) == artifact.onnx_sha256:
        return Origin(fused, given)
    others = _others(artifact)
    if others:
        return Origin(fused, None, not_here=f"its bytes depend on {', '.join(others)}")
    return Origin(
        fused,
        None,
        fault="the ONNX model that its bundle gives is not the one that its record pins "
        f"(sha256 {sha256_bytes(given)[:12]}… against {artifact.onnx_sha256[:12]}…)",
    )


def _others(artifact: Artifact) -> list[str]:
    """Whatever makes other bytes and is not here as it was where the engine was exported."""
    there, here = artifact.environment, environment()
    return [
        f"{name} ({there.get(name, 'not recorded')} there, {here.get(name, 'none')} here)"
        for name in DEPENDS_ON + precision_of(artifact.precision).depends_on
        if name not in there or there[name] != here.get(name)
    ]
