"""A RUN as `lorkd benchmark` leaves it. FIXTURE: every figure in it is made up, for tests only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.bundle.manifest import FileEntry, ParityEntry, TaskEntry
from lorkd_deploy.deploy.artifact import Artifact, EngineFile, engine_tasks, write_artifact
from lorkd_deploy.deploy.proof.parity import Compared, Parity
from lorkd_deploy.machine.environment import Environment, Load
from lorkd_deploy.metrics.decisions import mcnemar
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.profiling.colocation import Colocation
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.profile import (
    BatchRatio,
    ColdStart,
    Comparison,
    Difference,
    EngineProfile,
    Flips,
    Memory,
    Profile,
    Score,
    Stages,
    answers_name,
    calls_name,
    labels_name,
)
from lorkd_deploy.profiling.resampling import Spread
from lorkd_deploy.profiling.summary import batch_ratio
from lorkd_deploy.profiling.timing import RoundCalls, timing
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_bytes, sha256_file, write_tensors
from tests import tiny_bundle

ROUNDS = 5
BATCHES = (1, 8)
# department, task, classes, accuracy and AUC of teacher and expert, test images
TASKS = (
    (
        "breast",
        "ultrasound",
        ("malignant", "normal or benign"),
        (0.872, 0.907),
        (0.859, 0.874),
        156,
    ),
    ("chest", "xray", ("normal", "pneumonia"), (0.894, 0.962), (0.883, 0.951), 624),
    ("eye", "fundus", ("0", "1", "2", "3", "4"), (0.523, 0.731), (0.505, 0.698), 400),
    (
        "blood",
        "cells",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        (0.966, 0.998),
        (0.938, 0.996),
        3421,
    ),
)
# Any number of findings an image; in no run that doesn't ask for it.
FINDINGS = ("lungs", "film", ("edema", "effusion", "nodule"), (0.91, 0.83), (0.90, 0.82), 300)
TEACHER = "teacher/onnx-fp32"
# target and precision, times its latency is that of onnx-fp32, accuracy that it loses
ENGINES = (("onnx-fp32", 1.0, 0.0),)
MANY_ENGINES = (
    *ENGINES,
    ("onnx-fp16", 1.1, 0.0),
    ("onnx-int8", 0.6, 0.05),
    ("openvino-fp32", 0.8, 0.0),
    ("openvino-int8", 0.7, 0.001),
)


def build_run(
    run: Path,
    *,
    profile: bool = True,
    teacher: bool = True,
    artifacts: bool = True,
    tasks: tuple[Any, ...] = TASKS,
    engines: tuple[tuple[str, float, float], ...] = ENGINES,
) -> Path:
    """Write the fixture below `run`, with or without each part, with `engines` of every task."""
    bundle = _bundle(run / "bundle", "experts", tasks)
    of_teacher = _bundle(run / "teacher", "teacher", tasks)
    if artifacts:
        for (department, task, *_), (name, *_) in itertools.product(tasks, engines):
            _artifact(run / "export", department, task, bundle, tasks, name=name)
        if teacher:
            _artifact(run / "export", "teacher", "teacher", of_teacher, tasks)
    if profile:
        _profile(run / "profile", bundle, tasks, engines, teacher=teacher)
    return run


def _artifact(
    export: Path, department: str, engine: str, bundle: str, tasks: Any, *, name: str = "onnx-fp32"
) -> None:
    target, precision = name.split("-")
    entries = tuple(_task_entry(t, "experts") for t in tasks if engine in ("teacher", t[1]))
    size = 94_300_000 if engine == "teacher" else 5_120_000
    figures = [("inputs", 64, 2.1e-6), ("images", 156, 3.4e-6)]
    artifact = Artifact(
        engine=engine,
        department=department,
        tasks=engine_tasks(entries),
        target=target,
        precision=precision,
        files=(EngineFile(name="model.onnx", sha256="2" * 64, bytes=size),),
        onnx_sha256="2" * 64,
        bundle_sha256=bundle,
        preprocess=Preprocess(size=64),
        preprocess_sha256=Preprocess(size=64).sha256,
        parity=Parity(
            status="passed",
            compared=tuple(
                Compared(
                    task=entry.name,
                    on=on,  # type: ignore[arg-type]
                    rows=rows,
                    tolerance=7.3e-4,
                    max_abs=largest,
                    mean_abs=largest / 5,
                    cosine=0.9999999,
                    flips=0,
                    certain_flips=0,
                    non_finite=0,
                )
                for entry in entries
                for on, rows, largest in figures
                if not (entry.name == "fundus" and on == "images")
            ),
            images_not_here={"fundus": "the data is not on this machine"}
            if any(entry.name == "fundus" for entry in entries)
            else {},
        ),
        facts={"onnxruntime": "1.32.0"},
        build_seconds=0.4,
        environment={"python": "3.11.7"},
    )
    write_artifact(artifact, export / artifact.name)


def _task_entry(task: Any, kind: str) -> TaskEntry:
    department, name, classes, of_teacher, of_expert, _ = task
    return TaskEntry(
        name=name,
        department=department,
        classes=classes,
        kind="multilabel" if name == FINDINGS[1] else "multiclass",
        data={"source": "medmnist", "name": f"{name}mnist", "size": 64},
        rank=4 if kind == "experts" else None,
        alpha=16 if kind == "experts" else None,
        metrics={
            "teacher": {"accuracy": of_teacher[0], "auc": of_teacher[1]},
            "expert": {"accuracy": of_expert[0], "auc": of_expert[1]},
        },
    )


def _bundle(folder: Path, kind: Any, tasks: Any) -> str:
    files = ["base.safetensors", "template.onnx"]
    files += [f"experts/{task[1]}.safetensors" for task in tasks]
    engines = ["teacher"] if kind == "teacher" else [task[1] for task in tasks]
    files += [f"parity/{engine}.safetensors" for engine in engines]
    for name in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("parity/"):
            write_tensors(file, _references(tasks))
        else:
            file.write_bytes(f"fixture {name}".encode())
    network = "resnet50" if kind == "teacher" else "shufflenet_v2_x1_0"
    manifest = tiny_bundle.manifest(
        kind=kind,
        name="medmnist-fixture",
        architecture=f"torchvision:{network}",
        parameters={"backbone": 1_253_604},
        preprocess=Preprocess(size=64),
        tasks=tuple(_task_entry(task, kind) for task in tasks),
        parity=ParityEntry(inputs=64, seed=0, sha256="0" * 64),
        recipe={"name": "medmnist-fixture"},
        recipe_sha256="1" * 64,
        versions={"lorkd-deploy": "0.1.0", "numpy": "2.2.6", "torch": "2.15.0"},
        created="2026-11-23T20:00:00Z",
        files={
            name: FileEntry(sha256=sha256_file(folder / name), bytes=(folder / name).stat().st_size)
            for name in files
        },
    )
    data = document_bytes(manifest.model_dump(mode="json"))
    (folder / "manifest.json").write_bytes(data)
    return sha256_bytes(data)


def _references(tasks: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Reference logits of a test image of each task, without maps."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for _, task, classes, *_ in tasks:
        found[f"{task}.index"] = np.zeros(1, np.int64)
        found[f"{task}.sha256"] = np.zeros((1, 32), np.uint8)
        found[f"{task}.logits"] = np.zeros((1, len(classes)), np.float32)
    return found


def _profile(folder: Path, bundle_sha256: str, tasks: Any, exported: Any, *, teacher: bool) -> None:
    random = np.random.default_rng(7)
    calls: dict[str, np.ndarray[Any, Any]] = {}
    engines = []
    if teacher:
        scores = tuple(_score(t[1], t[3], t[5]) for t in tasks)
        names = tuple(t[1] for t in tasks)
        engines.append(
            _engine(
                TEACHER,
                None,
                names,
                milliseconds=33.2,
                size=94_300_000,
                peak=188.0,
                scores=scores,
                random=random,
                calls=calls,
            )
        )
    comparisons = []
    for (index, given), (name, times, lost) in itertools.product(enumerate(tasks), exported):
        department, task, classes, of_teacher, of_expert, images = given
        figures = (of_expert[0] - lost, of_expert[1])
        engines.append(
            _engine(
                f"{department}/{task}/{name}",
                department,
                (task,),
                milliseconds=(4.1 + 0.06 * index) * times,
                size=5_120_000,
                peak=31.5,
                scores=(_score(task, figures, images),),
                random=random,
                calls=calls,
            )
        )
        if teacher:
            beside = (department, task, classes, of_teacher, figures, images)
            comparisons.append(_compare(engines[0], engines[-1], beside))
    experts = [engine for engine in engines if engine.kind == "expert"]
    write_tensors(folder / "calls.safetensors", calls)
    write_tensors(folder / "answers.safetensors", _answers(engines, tasks))
    order = tuple(engine.engine for engine in engines)
    profile = Profile(
        created="2026-11-23T21:14:05Z",
        name="medmnist-fixture",
        bundle_sha256=bundle_sha256,
        preprocess_sha256=Preprocess(size=64).sha256,
        protocol=Protocol(
            rounds=ROUNDS,
            seconds=3,
            iterations=100,
            warmup=20,
            threads=1,
            cpus=(1,),
            batch_sizes=BATCHES,
            input_shape=(3, 64, 64),
            seed=0,
            order=tuple(order if i % 2 else order[::-1] for i in range(ROUNDS)),
            margin=0.02,
            clock="time.perf_counter_ns",
            repeats=0,
            most_others=0.1,
            most_throttled=0.01,
            most_slower=0.2,
            largest_batch=0,
            stage_image=512,
            quick=False,
            uncached=True,
            gpu_memory="not measured: nvidia-ml-py is not installed",
        ),
        environment=environment(),
        engines=tuple(engines),
        comparisons=tuple(comparisons),
        calls_sha256=sha256_file(folder / "calls.safetensors"),
        answers_sha256=sha256_file(folder / "answers.safetensors"),
        assertions=(),
        together=(
            _together([e.engine for e in experts if e.engine.endswith("onnx-fp32")], 5_120_000),
        )
        if len(tasks) > 1
        else (),
        notes=("Fixture: the figures on this page are made up, for tests of its layout.",),
    )
    (folder / "profile.json").write_bytes(document_bytes(profile.model_dump(mode="json")))


def _together(experts: list[str], size: int) -> Colocation:
    return Colocation(
        target="onnx",
        precision="fp32",
        engines=tuple(experts),
        bytes=size * len(experts),
        apart=80.0 * len(experts),
        apart_shared=80.0 * len(experts) - 110,
        one_process=80.0 + 10 * (len(experts) - 1),
        one_engine=80,
        empty=38,
    )


def _engine(
    engine: str,
    department: str | None,
    tasks: tuple[str, ...],
    *,
    milliseconds: float,
    size: int,
    peak: float,
    scores: tuple[Score, ...],
    random: np.random.Generator,
    calls: dict[str, np.ndarray[Any, Any]],
) -> EngineProfile:
    timings = []
    for batch in BATCHES:
        parts = []
        for number in range(ROUNDS):
            # A gamma tail, and now and then a call that something else held up.
            drift = 1 + 0.012 * random.standard_normal()
            found = milliseconds * batch**0.9 * drift * (1 + random.gamma(1.2, 0.012, 300))
            found[random.integers(0, 300, 3)] *= random.uniform(1.2, 1.9, 3)
            nanoseconds = (found * 1e6).astype(np.int64)
            calls[calls_name(engine, batch, number)] = nanoseconds
            parts.append(RoundCalls(nanoseconds, peak + batch, 2))
        timings.append(timing(batch, parts))
    target, precision = engine.rpartition("/")[2].split("-")
    return EngineProfile(
        engine=engine,
        kind="expert" if department else "teacher",
        department=department,
        tasks=tasks,
        target=target,
        precision=precision,
        bytes=size,
        facts={"provider": "CPUExecutionProvider", "threads": 1, "onnxruntime": "1.32.0"},
        cold_start=ColdStart(
            runtime_import=_spread(120),
            load=_spread(milliseconds * 9),
            first_inference=_spread(milliseconds * 1.8),
            process_to_first_answer=_spread(290 + milliseconds * 11),
            uncached_load=_spread(milliseconds * 18),
            uncached_first_inference=_spread(milliseconds * 2),
            uncached_process_to_first_answer=_spread(900 + milliseconds * 11),
            forgotten=_spread(0.97),
        ),
        memory=Memory(
            empty=_spread(38),
            loaded=_spread(peak - 4),
            peak=_spread(peak),
            source="VmHWM",
            gpu=None,
            allocator=None,
            unified=None,
            gpu_source="not measured: nvidia-ml-py is not installed",
        ),
        timings=tuple(timings),
        scores=scores,
        build_seconds=0.4,
        best_batch=None,
        joules=None,
        conditions=(),
        stages=Stages(
            read=_spread(3.1),
            preprocess=_spread(0.9),
            inference=_spread(milliseconds),
            postprocess=_spread(0.05),
            end_to_end=_spread(milliseconds + 4.05),
        ),
    )


def _answers(engines: list[EngineProfile], tasks: Any) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(11)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for _, task, classes, *_, images in tasks:
        count = len(classes)
        if many := task == FINDINGS[1]:
            labels = shown = random.integers(0, 2, (images, count))
        else:
            labels = random.integers(0, count, images)
            shown = np.eye(count, dtype=np.int64)[labels]
        found[labels_name(task)] = labels
        for engine in engines:
            if task in engine.tasks:
                logits = random.normal(size=(images, count)) + 2.5 * shown
                given = probabilities(logits - 1.25, "multilabel" if many else "multiclass")
                found[answers_name(task, engine.engine)] = given
    return found


def _spread(value: float) -> Spread:
    values = tuple(value * (1 + 0.01 * k) for k in range(-2, 3))
    return Spread(median=value, minimum=values[0], maximum=values[-1], rounds=values)


def _around(value: float, half: float, top: float = 1.0) -> Interval:
    return Interval(value=value, low=value - half, high=min(top, value + half))


def _score(task: str, figures: tuple[float, float], images: int) -> Score:
    half = 1.96 * (figures[0] * (1 - figures[0]) / images) ** 0.5
    return Score(
        task=task,
        images=images,
        accuracy=_around(figures[0], half),
        auc=_around(figures[1], half / 2),
        majority=0.435,
        balanced_accuracy=_around(figures[0] - 0.02, half),
        sensitivity=_around(figures[0] - 0.01, half),
        specificity=_around(figures[0] + 0.01, half),
        calibration_error=_around(0.04, 0.01),
        thresholds=(0.31, 0.37, 0.52) if task == FINDINGS[1] else (0.37,),
        threshold_from="validation",
    )


def _compare(teacher: EngineProfile, expert: EngineProfile, task: Any) -> Comparison:
    _, name, classes, of_teacher, of_expert, images = task
    half = 1.4 / images**0.5
    many = name == FINDINGS[1]
    answers, p = (images * len(classes), None) if many else (images, mcnemar(3, 11))
    change = of_expert[0] - of_teacher[0]
    gained = 3 if change < 0 else 11 + round(change * answers)
    ratios: tuple[BatchRatio, ...] = tuple(
        batch_ratio(t, e) for t, e in zip(teacher.timings, expert.timings, strict=True)
    )
    assert teacher.memory.peak and expert.memory.peak
    return Comparison(
        engine=expert.engine,
        teacher=teacher.engine,
        latency=ratios,
        memory=teacher.memory.peak.median / expert.memory.peak.median,
        size=teacher.bytes / expert.bytes,
        throughput=None,
        scores=(
            Difference(
                task=name,
                accuracy=_around(of_expert[0] - of_teacher[0], half),
                auc=_around(of_expert[1] - of_teacher[1], half / 2),
                balanced_accuracy=_around(of_expert[0] - of_teacher[0], half),
                sensitivity=_around(-0.02, 0.05),
                specificity=_around(0.01, 0.05),
                calibration_error=_around(0.03, 0.01),
                flips=Flips(answers=answers, gained=gained, lost=11, moved=0 if many else 1, p=p),
            ),
        ),
    )


def environment() -> Environment:
    return Environment(
        cpu="Fixture CPU @ 2.50GHz",
        architecture="x86_64",
        logical_cpus=2,
        physical_cpus=1,
        allowed_cpus=2,
        cpu_limit=2.0,
        governor=None,
        max_mhz=2500,
        memory_mib=24_000,
        memory_limit_mib=None,
        gpus=(),
        battery=False,
        system="Debian GNU/Linux 12",
        kernel="6.1.0",
        python="3.11.7",
        packages={"numpy": "2.2.6", "onnxruntime": "1.32.0"},
        load=Load(before=(0.21, 0.30, 0.28), after=(1.04, 0.71, 0.45)),
    )
