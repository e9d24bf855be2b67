"""A made run whose tasks have guards: what the first layer sees is a further output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from lorkd_deploy.bundle.manifest import SafetyEntry
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.safety.guard import fitted, guard_of

FEATURES = 4  # the channels of the first convolution


def add_guards(bundle: Path) -> None:
    """Give every task of the bundle a guard, for which some pictures are outside."""
    known = load_bundle(bundle)
    model = onnx.load_from_string(known.template())
    nodes = [
        helper.make_node("GlobalAveragePool", ["x2"], ["f0"]),
        helper.make_node("Flatten", ["f0"], ["features"]),
    ]
    model.graph.node.extend(nodes)
    shape = ["batch", FEATURES]
    model.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, shape))
    rng = np.random.default_rng(2)
    kept = fitted(rng.normal(2, 1, (50, FEATURES)).astype(np.float32))
    guard = guard_of(np.linspace(5, 46, 40), 50)
    tasks = [
        t.model_copy(update={"safety": SafetyEntry(guard=guard)}) for t in known.manifest.tasks
    ]
    graph = known.manifest.graph.model_copy(update={"features": "features"})
    described = known.manifest.model_copy(
        update={"tasks": tuple(tasks), "graph": graph, "files": {}}
    )
    names = [task.name for task in tasks]
    contents = Contents(
        base=known.base,
        experts={name: known.expert(name) for name in names},
        logits={name: known.logits(name) for name in names},
        template=model.SerializeToString(deterministic=True),
        safety=dict.fromkeys(names, kept),
    )
    write_bundle(bundle, described, contents)
