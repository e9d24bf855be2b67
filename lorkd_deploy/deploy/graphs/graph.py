"""Put an expert's fused weights into the graph template: one torch export serves every task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lorkd_deploy._version import __version__
from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.manifest import HEAD_TENSORS, Binding
from lorkd_deploy.bundle.read import FRESH_COPY, Bundle
from lorkd_deploy.bundle.size import check_size
from lorkd_deploy.deploy.graphs.computed import compute_weights
from lorkd_deploy.deploy.graphs.nodes import keep
from lorkd_deploy.errors import BundleError, UsageError

if TYPE_CHECKING:
    import onnx


def onnx_model(
    bundle: Bundle,
    engine: str,
    *,
    explain: bool = False,
    tensors: Mapping[str, F32] | None = None,
    version: str = __version__,
    bundle_sha256: str | None = None,
) -> bytes:
    """The ONNX model of one engine: float32 `(N, 3, S, S)` → logits `(N, K)`.

    The features that a guard looks at are a further output, with `explain` the class activation
    maps too.

    `tensors` are the initialisers by name, `bundle.fuse(engine)` if they are not given. Every one
    is bound exactly once, weights that are computed from others are computed (`computed.py`), and
    the result passes the ONNX checker. Equal bundles give equal bytes: there is no time and no path
    in it. `version` of lorkd-deploy and `bundle_sha256`, this bundle's if it isn't given, stand in
    its metadata. Raises `UsageError` for an unknown engine, or maps of a bundle that has none,
    `BundleError` where the tensors are not
    exactly the template's, `ModelError` for a network above 2 GiB.
    """
    from google.protobuf.message import DecodeError

    origin = {"lorkd.bundle_sha256": bundle_sha256 or bundle.sha256, "lorkd.version": version}
    try:
        return _filled(bundle, engine, tensors, origin, explain=explain)
    except (DecodeError, UnicodeDecodeError, IndexError) as exc:
        raise BundleError(
            f"the bundle's graph template is damaged: {exc}", where=bundle.path, fix=FRESH_COPY
        ) from exc


def _filled(
    bundle: Bundle,
    engine: str,
    tensors: Mapping[str, F32] | None,
    origin: Mapping[str, str],
    *,
    explain: bool,
) -> bytes:
    import onnx

    tasks = bundle.engine(engine)
    classes = sum(len(task.classes) for task in tasks)
    model = onnx.ModelProto.FromString(bundle.template())
    check_size(model.graph, where=bundle.path)
    maps = bundle.manifest.graph.maps
    if explain:
        require_maps(bundle)
    elif maps is not None:
        leave_out(model.graph, maps)
    values = bundle.fuse(engine) if tensors is None else tensors
    _bind(model.graph, bundle, values, classes)
    compute_weights(model, bundle.path)
    for output in model.graph.output:
        if output.name in (bundle.manifest.graph.output, maps):
            output.type.tensor_type.shape.dim[1].dim_value = classes
    model.producer_name, model.producer_version = "lorkd-deploy", origin["lorkd.version"]
    onnx.helper.set_model_props(model, metadata(bundle, engine) | dict(origin))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise BundleError(
            f"the filled graph of {engine} is not valid ONNX: {exc}", where=bundle.path
        ) from exc
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def require_maps(bundle: Bundle) -> None:
    """Raise `UsageError` where a bundle has no maps that an engine could give."""
    if bundle.manifest.graph.maps is None:
        raise UsageError(
            "the bundle has no maps of where its network looks, and nothing to prove them by",
            where=bundle.path,
            fix="train with `--set safety.explain=true`; a network that doesn't end in a global "
            "average pooling has none",
        )


def leave_out(graph: onnx.GraphProto, output: str) -> None:
    """Take an output away, and what leads to no other."""
    keep(graph, [value for value in graph.output if value.name != output])


def metadata(bundle: Bundle, engine: str) -> dict[str, str]:
    """What an engine says of itself, as ONNX `metadata_props`; values are JSON or plain text."""
    preprocess = bundle.manifest.preprocess
    described = [
        {"name": t.name, "department": t.department, "kind": t.kind, "classes": list(t.classes)}
        for t in bundle.engine(engine)
    ]
    return {
        "lorkd.engine": engine,
        "lorkd.tasks": json.dumps(described, ensure_ascii=False),
        "lorkd.preprocess": json.dumps(preprocess.model_dump(mode="json"), sort_keys=True),
        "lorkd.preprocess_sha256": preprocess.sha256,
    }


def _bind(graph: onnx.GraphProto, bundle: Bundle, values: Mapping[str, F32], classes: int) -> None:
    """Fill every initialiser that the manifest binds; whatever is left over is an error."""
    bindings = {binding.initializer: binding for binding in bundle.manifest.graph.bindings}
    empty = {i.name for i in graph.initializer if not i.raw_data and math.prod(i.dims)}
    for what, names in (
        ("bound more than once", len(bundle.manifest.graph.bindings) - len(bindings)),
        ("not in the graph", set(bindings) - empty),
        ("left without a weight", empty - set(values)),
        ("given but not in the graph", set(values) - empty),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) if isinstance(names, set) else names
            raise BundleError(f"initialisers {what}: {shown}", where=bundle.path)
    for initializer in graph.initializer:
        if initializer.name not in empty:
            continue
        value = values[initializer.name]
        expected = _shape(tuple(initializer.dims), bindings[initializer.name], classes)
        if value.shape != expected or value.dtype != np.float32:
            raise BundleError(
                f"{initializer.name} is {value.dtype} {value.shape}, "
                f"the graph needs float32 {expected}",
                where=bundle.path,
            )
        initializer.dims[:] = expected
        initializer.raw_data = value.astype("<f4", copy=False).tobytes()


def _shape(dims: tuple[int, ...], binding: Binding, classes: int) -> tuple[int, ...]:
    """The initialiser's shape in this engine: the template's, with the head's class count."""
    if binding.source not in HEAD_TENSORS:
        return dims
    return (*dims[:-1], classes) if binding.transpose or len(dims) == 1 else (classes, *dims[1:])
