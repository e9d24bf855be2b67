"""What a method's answer costs at inference: parameters, size and latency of one task's network."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lorkd_deploy import models
from lorkd_deploy.bundle.write import now
from lorkd_deploy.errors import BundleError, RuntimeUnavailableError
from lorkd_deploy.evidence.methods.kf import FactorisedNetwork
from lorkd_deploy.evidence.methods.kf_training import build_factorised
from lorkd_deploy.evidence.methods.table import Network
from lorkd_deploy.experts import ExpertClassifier, TaskNetwork
from lorkd_deploy.machine.packages import software
from lorkd_deploy.machine.processor import cpu_model
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import RunOptions, exporter
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.student import build_backbone, build_student

ROUNDS, CALLS, WARM = 5, 40, 20
_MODEL = "model.onnx"


class Cost(Part):
    """Of one task's network: `parameters`, `mib` as ONNX in float32, median `latency` at batch 1 in
    ms by ONNX Runtime with one thread (None where that isn't installed). `stored` are the
    parameters that all tasks need together. `measured` is when and on which processor, all of a
    study's graphs in turn.
    """

    parameters: int
    stored: int
    mib: float
    latency: float | None
    measured: str | None = None


class Graph(Part):
    """Size and latency of a graph as ONNX, whatever its weights."""

    mib: float
    latency: float | None


class Measured(Part):
    """Graphs that were measured in turn, so that they can be compared: when and where."""

    schema_version: int = 1
    graphs: dict[str, Graph]
    created: str
    processor: str
    software: dict[str, str]


@dataclass(frozen=True)
class Deployed:
    """The kind of network that a method deploys, and for what: one setup, or one per task."""

    network: Network
    setups: tuple[Setup, ...]


def costs(methods: Mapping[str, Deployed], known: Path | None = None) -> dict[str, Cost]:
    """By method; graphs that are the same but for their weights are measured once.

    The file `known` has what was measured before. One graph more, another processor or other
    software, and all are measured again: what isn't measured together can't be compared.
    """
    built = {
        name: [_built(method.network, setup) for setup in method.setups]
        for name, method in methods.items()
    }
    graphs = {name: _graph(method) for name, method in methods.items()}
    first = {graph: name for name, graph in reversed(graphs.items())}
    found = _read(known, first.keys())
    if found is None:
        examples = {
            graph: (one_task(built[name][0]), _preprocess(methods[name]).size)
            for graph, name in first.items()
        }
        found = _measured(examples)
        if known is not None:
            write_part(known, found)
    return {
        name: Cost(
            parameters=_count(one_task(networks[0])),
            stored=sum(stored_parameters(network) for network in networks),
            **found.graphs[graphs[name]].model_dump(),
            measured=f"{found.created[:10]}, {found.processor}",
        )
        for name, networks in built.items()
    }


def _read(known: Path | None, graphs: Collection[str]) -> Measured | None:
    """What `known` has of all `graphs`, measured on this machine; None where it hasn't."""
    if known is None or not known.exists():
        return None
    try:
        found = read_part(known, Measured, BundleError, "")
    except BundleError:
        return None
    same = (found.processor, found.software) == (cpu_model(), software())
    return found if same and set(graphs) <= found.graphs.keys() else None


def _measured(examples: Mapping[str, tuple[nn.Module, int]]) -> Measured:
    """By graph a network that has it, and the size of its input."""
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, tuple[Path, int]] = {}
        for graph, (module, size) in examples.items():
            files[graph] = Path(folder) / str(len(files)) / _MODEL, size
            _export(module, size, files[graph][0])
        latency = _latencies(files)
        graphs = {
            graph: Graph(mib=file.stat().st_size / (1 << 20), latency=latency.get(graph))
            for graph, (file, _) in files.items()
        }
    return Measured(graphs=graphs, created=now(), processor=cpu_model(), software=software())


def _preprocess(method: Deployed) -> Preprocess:
    setup = method.setups[0]
    return (setup.for_teacher() if method.network == "teacher" else setup).preprocess


def _graph(method: Deployed) -> str:
    """What a network's graph depends on."""
    recipe, size = method.setups[0].recipe, _preprocess(method).size
    spec = recipe.teacher if method.network == "teacher" else recipe.student
    return f"{method.network} {spec.architecture} {size}"


def _built(kind: Network, setup: Setup) -> TaskNetwork:
    """A network of the kind, with weights of no matter."""
    if kind == "factorised":
        return build_factorised(setup).eval()
    if kind == "student":
        return build_student(setup).eval()
    backbone = build_backbone(setup.recipe, setup.recipe.teacher)
    features = models.feature_dim(backbone, setup.for_teacher().preprocess.size)
    return TeacherNetwork(backbone, features, setup.classes).eval()


def one_task(network: TaskNetwork, task: int = 0) -> nn.Module:
    """What is deployed for one task: `(N, 3, S, S)` → logits `(N, K)`."""
    if isinstance(network, FactorisedNetwork):
        return network.dense(task)
    assert isinstance(network, ExpertClassifier | TeacherNetwork)
    return nn.Sequential(*network.dense(task))


def stored_parameters(network: TaskNetwork) -> int:
    """The parameters that are kept to answer for all tasks."""
    if isinstance(network, FactorisedNetwork):
        return _count(network.common.module) + _count(network.own) + _count(network.heads)
    if isinstance(network, ExpertClassifier):
        experts = network.backbone
        own = sum(v.numel() for t in range(experts.tasks) for v in experts.expert_state(t).values())
        return _count(experts.dense(0)) + own + _count(network.heads)
    return _count(network)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _export(module: nn.Module, size: int, file: Path) -> None:
    file.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            str(file),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            external_data=False,
            verbose=False,
        )


def _latencies(files: Mapping[str, tuple[Path, int]]) -> dict[str, float]:
    """ms by graph, whose files have inputs of the size; nothing where ONNX Runtime can't run."""
    try:
        onnx = exporter("onnx")
        runners = {
            graph: (onnx.open(file.parent, (_MODEL,), RunOptions(threads=1)), size)
            for graph, (file, size) in files.items()
        }
    except RuntimeUnavailableError:
        return {}
    seconds: dict[str, list[float]] = {graph: [] for graph in runners}
    for _ in range(ROUNDS):
        for graph, (runner, size) in runners.items():
            image = np.zeros((1, 3, size, size), np.float32)
            for call in range(WARM + CALLS):
                began = time.perf_counter()
                runner(image)
                if call >= WARM:
                    seconds[graph].append(time.perf_counter() - began)
    for runner, _ in runners.values():
        runner.close()
    return {graph: 1e3 * float(np.median(values)) for graph, values in seconds.items()}
