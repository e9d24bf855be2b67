"""The ONNX model that an engine is built from, made from the bundle: once, and again as proof.

It is the fused model, in the engine's precision where the target wants that. Engines of one model
differ from build to build; the model's bytes do not. So an engine's record pins the model
(`onnx_sha256`), and whoever has the bundle can make it again and compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lorkd_deploy._version import __version__
from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, environment
from lorkd_deploy.deploy.graphs.adapters import adapted
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.raw import raw_model
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.precisions.table import BASELINE, converted, precision_of
from lorkd_deploy.runtime import Probe, exporter
from lorkd_deploy.storage import sha256_bytes

# What a model's bytes depend on beside the bundle and its precision.
DEPENDS_ON = ("lorkd-deploy", "numpy", "onnx", "architecture")


class Remade(NamedTuple):
    """The model that an engine was built from, as far as it can be made again here.

    `fused` is the expert's float32 model, `source` the one in the engine's precision that is pinned
    and from which its target built, but for what the option `raw` puts around it. `source` is None
    where `fault` says that the pin is wrong, or `not_here` why it can't be judged.
    """

    fused: bytes
    source: bytes | None
    fault: str | None = None
    not_here: str | None = None


def source_model(
    fused: bytes,
    bundle: Bundle,
    engine: str,
    precision: str,
    probe: Probe,
    *,
    left: Sequence[str] = (),
    adapters: bool = False,
) -> bytes:
    """What a target builds from: `fused`, in the engine's precision where the target wants that,
    but for the nodes that `left` names; or, with `adapters`, with the task's own tensors as inputs.

    Raises what `precisions.table.converted` and `adapters.adapted` raise.
    """
    if adapters:
        return adapted(bundle, engine, fused)
    return converted(fused, precision, probe, partial(calibration_images, bundle, engine), left)


def source_again(fused: bytes, bundle: Bundle, artifact: Artifact, probe: Probe) -> bytes:
    """The same for an engine that exists, as its record says; raises as `source_model` does."""
    return source_model(
        fused,
        bundle,
        artifact.engine,
        artifact.precision,
        probe,
        left=artifact.nodes_left,
        adapters=artifact.adapters,
    )


def given(source: bytes, bundle: Bundle, artifact: Artifact) -> bytes:
    """What a target was given of the `source` of an engine that exists: `raw.py`."""
    return raw_model(source, bundle, artifact.engine) if artifact.raw else source


def calibration_images(bundle: Bundle, engine: str) -> F32:
    """Network inputs float32 `(N, 3, S, S)` from the training splits of the engine's tasks.

    Their number and the seed stand in the recipe; an engine of several tasks takes equally many of
    each. Raises `DataError` where the images aren't here or are others.
    """
    spec = bundle.recipe.calibration
    tasks = bundle.engine(engine)
    each = -(-spec.images // len(tasks))
    parts = []
    for task in tasks:
        data = bundle.own_data(task.name)
        rows = drawn(len(data.train), each, spec.seed)
        parts.append(bundle.manifest.preprocess(data.train.images[row] for row in rows))
    return np.concatenate(parts)


def drawn(count: int, most: int, seed: int) -> list[int]:
    """Numbers below `count` in their order, at most `most`, by seed alone."""
    # Raw bits of PCG64: NumPy keeps this stream from version to version.
    bits = np.random.PCG64(seed).random_raw(count)
    rows: list[int] = np.sort(np.argsort(bits, kind="stable")[:most]).tolist()
    return rows


def remade(artifact: Artifact, bundle: Bundle) -> Remade:
    """Make the model of `artifact` again, from its bundle or a part of it, and compare the pin.

    It is made with the name of the version and of the bundle that the engine was exported with:
    they stand in the model's metadata and may be others now.
    """
    fused = onnx_model(
        bundle,
        artifact.engine,
        explain=artifact.explain,
        version=artifact.environment.get("lorkd-deploy", __version__),
        bundle_sha256=artifact.bundle_sha256,
    )
    probe = exporter(artifact.target).probe()
    if artifact.precision != BASELINE and not probe.can_build:
        why = f"what {artifact.target} takes for {artifact.precision} is not known here"
        return Remade(fused, None, not_here=f"{why}: {probe.reason}")
    try:
        source = source_again(fused, bundle, artifact, probe)
    except LorkdError as exc:
        return Remade(fused, None, not_here=exc.what)
    pinned = sha256_bytes(given(source, bundle, artifact))
    if pinned == artifact.onnx_sha256:
        return Remade(fused, source)
    if others := _differences(artifact):
        return Remade(fused, None, not_here=f"its bytes depend on {', '.join(others)}")
    return Remade(
        fused,
        None,
        fault="the ONNX model that its bundle gives is not the one that its record pins "
        f"(sha256 {pinned[:12]}… against {artifact.onnx_sha256[:12]}…)",
    )


def _differences(artifact: Artifact) -> list[str]:
    """What the bytes depend on and is not here as it was where the engine was exported."""
    there, here = artifact.environment, environment()
    return [
        f"{name} ({there.get(name, 'not recorded')} there, {here.get(name, 'none')} here)"
        for name in DEPENDS_ON + precision_of(artifact.precision).depends_on
        if name not in there or there[name] != here.get(name)
    ]
