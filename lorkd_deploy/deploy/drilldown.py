"""`lorkd verify --drill-down`: the first node whose output differs from the fused model's.

The fused float32 model is cut off behind one tensor after the other, by bisection, and run by ONNX
Runtime. An engine that is itself an ONNX model is cut at the same tensors. Of any other the
truncated model is built anew for its target: what differs then is the runtime's doing, and where
nothing differs while the engine does, its file is not what its record says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.nodes import Cuttable, layer_of
from lorkd_deploy.deploy.graphs.source_model import given, source_again
from lorkd_deploy.deploy.proof.chain import FUSED, Stage, opened_stage
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.runtime import EngineSpec, RunOptions, exporter
from lorkd_deploy.schema import Part

IMAGES = 8  # enough to show a difference, few enough for the inner tensors of a large network


class Drilled(Part):
    """What the search found in one engine.

    `node`, its operator, the tensor that it makes and `layer`, where it came from, are None where
    no node differs. `difference` is that of this tensor, or of the engine's output, and beyond
    `tolerance` it counts. `rebuilt` says that truncated models were built anew for the target;
    `models` is how many pairs were run.
    """

    node: str | None
    operator: str | None = None
    layer: str | None = None
    tensor: str
    difference: float
    tolerance: float
    rebuilt: bool
    models: int

    def __str__(self) -> str:
        if self.node is None:
            of = "of a fresh build " if self.rebuilt else ""
            return (
                f"no node {of}differs: {self.difference:.3g} at the end, "
                f"{self.tolerance:.3g} is allowed"
            )
        where = f", {self.layer}" if self.layer else ""
        return (
            f"the first node that differs is {self.operator} {self.node!r}{where}: "
            f"{self.difference:.3g} in {self.tensor!r}, {self.tolerance:.3g} is allowed"
        )


def drill_down(artifact: Artifact, reference: Reference) -> Drilled:
    """Find the first node of `artifact` that differs from its bundle's fused model.

    Raises `RuntimeUnavailableError` where ONNX Runtime or the target can't run here, `DataError`
    where an int8 model has to be made again and its calibration images aren't here.
    """
    pair = _pair(artifact, reference)
    exact, tensor = pair.exact, pair.common[-1]
    node = None
    if pair.differs(tensor):
        tensor = first_difference(pair.common, exact, pair.differs)
        node = exact.makers[tensor]
    difference, allowed = pair.difference(tensor)
    sources = {b.initializer: b.source for b in reference.bundle.manifest.graph.bindings}
    return Drilled(
        node=None if node is None else node.name or node.output[0],
        operator=None if node is None else node.op_type,
        layer=None if node is None else layer_of(exact.model.graph, node, sources),
        tensor=tensor,
        difference=min(difference, float(np.finfo(np.float32).max)),  # JSON has no infinity
        tolerance=allowed,
        rebuilt=pair.rebuilt,
        models=len(pair.compared),
    )


@dataclass(frozen=True)
class _Pair:
    """The fused model and the engine's, and what is given to each: the network's `inputs`, and
    `given`, which the engine takes of the same images; `run` is the engine's side.

    A difference counts beyond `share` of the largest value of a tensor, or of 1.
    """

    exact: Cuttable
    cut: Cuttable
    run: Callable[[Batch, str], F32]
    rebuilt: bool
    inputs: F32
    given: Batch
    share: float
    compared: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def common(self) -> list[str]:
        """The tensors that both have, in the order in which they are computed."""
        known = set(self.cut.tensors)
        return [name for name in self.exact.tensors if name in known]

    def difference(self, tensor: str) -> tuple[float, float]:
        """The largest difference in a tensor, and what is allowed; each is run once."""
        if tensor not in self.compared:
            expected = _on_onnx_runtime(self.exact, self.inputs, tensor)
            found = self.run(self.given, tensor)
            allowed = self.share * max(1.0, float(np.abs(expected).max()))
            same = expected.shape == found.shape and np.isfinite(found).all()
            largest = float(np.abs(expected - found).max()) if same else float("inf")
            self.compared[tensor] = largest, allowed
        return self.compared[tensor]

    def differs(self, tensor: str) -> bool:
        """Whether the difference in a tensor counts."""
        difference, allowed = self.difference(tensor)
        return difference > allowed


def _pair(artifact: Artifact, reference: Reference) -> _Pair:
    bundle = reference.bundle
    fused = onnx_model(bundle, artifact.engine)
    own = artifact.folder / artifact.files[0].name
    rebuilt = own.suffix != ".onnx"
    if rebuilt:
        probe = exporter(artifact.target).probe()
        source = source_again(fused, bundle, artifact, probe)
        cut = Cuttable(given(source, bundle, artifact))
        run = partial(_rebuilt, artifact, cut)
    else:
        cut = Cuttable(own.read_bytes())
        run = partial(_on_onnx_runtime, cut)
    images, share = reference.trial(artifact.engine, artifact.precision, IMAGES)
    inputs = artifact.preprocess.normalise(images)
    return _Pair(Cuttable(fused), cut, run, rebuilt, inputs, artifact.batch(images), share)


def first_difference(order: Sequence[str], graph: Cuttable, differs: Callable[[str], bool]) -> str:
    """A tensor that differs while nothing that it is computed from does; the last of `order`
    differs. Bisection, and again among the ancestors where two branches hid one from it.
    """
    end = order[-1]
    while True:
        above = graph.ancestors(end)
        line = [name for name in order if name in above] + [end]
        low, high = -1, len(line) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if differs(line[middle]) else (middle, high)
        found = line[high]
        earlier = [name for name in _nearest(graph, found, set(order)) if differs(name)]
        if not earlier:
            return found
        end = earlier[0]


def _nearest(graph: Cuttable, tensor: str, known: set[str]) -> list[str]:
    """The closest tensors above that are in both models."""
    found: list[str] = []
    waiting = graph.parents(tensor)
    while waiting:
        name = waiting.pop(0)
        if name in known:
            found.append(name)
        else:
            waiting += graph.parents(name)
    return list(dict.fromkeys(found))


def _on_onnx_runtime(cut: Cuttable, images: Batch, tensor: str) -> F32:
    with opened_stage(Stage(FUSED, cut.up_to(tensor), BASELINE)) as runner:
        return runner(images)


def _rebuilt(artifact: Artifact, cut: Cuttable, images: Batch, tensor: str) -> F32:
    """`tensor` through the artifact's target, built with the options that its record has: those
    that name a file or folder of the machine aren't among them."""
    target = exporter(artifact.target)
    spec = EngineSpec(artifact.precision, dict(artifact.facts.get("options", {})))
    with tempfile.TemporaryDirectory(prefix="lorkd-drill-") as name:
        folder = Path(name)
        source = folder / "cut.onnx"
        source.write_bytes(cut.up_to(tensor))
        built = folder / "engine"
        built.mkdir()
        files = target.export(source, built, spec).files
        with target.open(built, files, RunOptions(threads=usable_cpus())) as runner:
            return runner(images)
