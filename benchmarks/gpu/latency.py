"""Step 5: an expert and its teacher by every runtime that is here: built, proven, timed, weighed.

A call takes a float32 batch in the host's memory and gives logits there, copies included: torch in
fp32 and bf16, ONNX Runtime by its CUDA and TensorRT providers, TensorRT for RTX. Engines are built
by `export`, whose parity they have to pass. Energy is NVML's count for the whole GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.given import Given, LeftOutError
from lorkd_deploy import export, load_bundle, models
from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.manifest import HEAD, HEAD_TENSORS, TEACHER
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import open_engine
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.errors import LorkdError, RuntimeUnavailableError, first_line
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.profiling.worker.calls import timed_calls, warm_up, without_gc
from lorkd_deploy.runtime import Closing, Runner, exporter

BATCHES = (1, 8, 32, 256)
CALLS, SECONDS = 20, 0.5  # of a batch size, at least
ENGINES = (  # target, precision, options
    ("onnx", "fp32", {"providers": ["CUDA"]}),
    ("onnx", "fp32", {"providers": ["TensorRT", "CUDA"]}),
    ("onnx", "fp16", {"providers": ["CUDA"]}),
    ("trt-rtx", "fp32", {}),
    ("trt-rtx", "fp16", {}),
)
TINY: Any = (("onnx", "fp32", {}), ("trt-rtx", "fp32", {}))


class TorchRunner(Closing):
    """The dense network by torch itself, eager and channels-last."""

    def __init__(self, network: nn.Module, device: str, precision: str) -> None:
        self._network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device, self._half = device, precision == "bf16"
        self.facts = {"runtime": "torch", "version": torch.__version__, "precision": precision}

    @torch.inference_mode()
    def __call__(self, batch: F32) -> F32:
        x = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._half):
            logits = self._network(x)
        return np.asarray(logits.float().cpu().numpy(), np.float32)

    def close(self) -> None:
        self._network = nn.Module()


def run(given: Given) -> Iterator[dict[str, Any]]:
    bundles = {given.run / "bundle": None, given.run / "teacher": TEACHER}
    if not all(place.exists() for place in bundles):
        raise LeftOutError("the step `decompose` has left no bundle to build engines from")
    gpus = Gpus()
    document: dict[str, Any] = {"energy": gpus.absent or "NVML, the whole GPU", "rows": []}
    document["left_out"] = {}
    for place, name in bundles.items():
        bundle = load_bundle(place)
        engine = name or bundle.manifest.tasks[0].name
        for title, opened in _ways(given, bundle, engine):
            try:
                with opened() as runner:
                    measured = {"engine": engine, "runtime": title, "facts": runner.facts}
                    for batch in BATCHES[:2] if given.rehearsal else BATCHES:
                        row = _timed(runner, _inputs(bundle, batch), gpus, given)
                        document["rows"].append(measured | row)
            except (LorkdError, RuntimeError) as exc:
                document["left_out"][f"{engine}, {title}"] = first_line(exc)
            yield document


def _ways(given: Given, bundle: Bundle, engine: str) -> Iterator[tuple[str, Any]]:
    for precision in ("fp32", "bf16"):
        yield f"torch {precision}", lambda p=precision: _by_torch(given, bundle, engine, p)
    for target, precision, options in TINY if given.rehearsal else ENGINES:
        named = "".join(f" {name}" for name in options.get("providers", [])[:1])
        yield (
            f"{target}{named} {precision}",
            lambda t=target, p=precision, o=options: _built(given, engine, t, p, o),
        )


def _by_torch(given: Given, bundle: Bundle, engine: str, precision: str) -> Runner:
    """Proven as an engine is; bf16 by the tolerance of that precision."""
    runner = TorchRunner(_network(bundle, engine), given.device, precision)
    parity = Reference(bundle).check(engine, runner, precision)
    if parity.status == "failed":
        raise RuntimeUnavailableError(f"torch fails its parity: {'; '.join(parity.reasons)}")
    return runner


def _built(
    given: Given, engine: str, target: str, precision: str, options: dict[str, Any]
) -> Runner:
    probe = exporter(target).probe()
    if not probe.can_run:
        raise RuntimeUnavailableError(probe.reason or f"{target} can't run here")
    folder = given.work / "engines" / f"{target}-{'-'.join(options.get('providers', []))}"
    (artifact,) = export(
        given.run / "teacher" if engine == TEACHER else given.run,
        target,
        precision=precision,
        options=options,
        task=[] if engine == TEACHER else [engine],
        out=folder,
    )
    return open_engine(artifact)


def _network(bundle: Bundle, engine: str) -> nn.Module:
    """Backbone and head of an engine, in evaluation mode; the teacher's heads side by side."""
    tasks = bundle.engine(engine)
    state = {name: torch.tensor(v).float() for name, v in bundle.dense(tasks[0].name).items()}
    parts = [[torch.tensor(bundle.expert(t.name)[part]) for t in tasks] for part in HEAD_TENSORS]
    weight, bias = (torch.cat(each).float() for each in parts)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": bias})
    backbone = models.build(bundle.manifest.architecture, bundle.manifest.network_config)
    own = {name: value for name, value in state.items() if not name.startswith(HEAD)}
    backbone.load_state_dict(own, strict=False)
    return nn.Sequential(backbone, head).eval()


def _inputs(bundle: Bundle, batch: int) -> F32:
    size = bundle.manifest.preprocess.size
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)


def _timed(runner: Runner, images: F32, gpus: Gpus, given: Given) -> dict[str, Any]:
    calls, seconds = (3, 0.0) if given.rehearsal else (CALLS, SECONDS)
    warm_up(runner, images, calls, 2.0)
    with without_gc():
        before = None if gpus.absent else gpus.joules()
        spent = timed_calls(runner, images, calls, seconds)
        after = before if before is None else gpus.joules()
    row: dict[str, Any] = {
        "batch": len(images),
        "calls": len(spent),
        "p50_ms": statistics.median(spent) / 1e6,
        "images_per_s": len(images) * len(spent) / (sum(spent) / 1e9),
    }
    if before is not None and after is not None:
        row["joules_per_image"] = (after - before) / (len(images) * len(spent))
    return row


def lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"Energy: {document['energy']}.\n"
    yield "| engine | runtime | batch | median, ms | images/s | J an image |"
    yield "|---|---|---|---|---|---|"
    for row in document["rows"]:
        energy = row.get("joules_per_image")
        yield (
            f"| {row['engine']} | {row['runtime']} | {row['batch']} | {row['p50_ms']:.3f} "
            f"| {row['images_per_s']:.0f} | {'–' if energy is None else f'{energy:.4f}'} |"
        )
    for name, why in document["left_out"].items():
        yield f"\nNot {name}: {why}"
