"""What a department runs and what it was made from, as a CycloneDX 1.6 ML-BOM.

https://cyclonedx.org/capabilities/mlbom: engines and weights with their hashes, the data sets, the
packages, and of each task a `modelCard`, which the library can't write yet: it goes into its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.manifest import BASE, TEMPLATE, TaskEntry, expert_file
from lorkd_deploy.errors import RuntimeUnavailableError, unknown_name
from lorkd_deploy.machine.packages import NAME
from lorkd_deploy.reporting.facts.limits import intended_use, limits
from lorkd_deploy.reporting.facts.sources import Sources, read_sources
from lorkd_deploy.reporting.words import NO_DEVICE
from lorkd_deploy.run import open_run
from lorkd_deploy.storage import write_atomic

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

FOLDER = "bom"
SUFFIX = ".cdx.json"
MACHINE = {"architecture", "processor", "system"}  # of an engine's environment, no packages


def bom(
    run: str | Path, *, department: Sequence[str] = (), out: str | Path | None = None
) -> list[Path]:
    """Write DEPARTMENT.cdx.json of the departments (all, if none is named) into `out`, RUN/bom.

    Hashes are checked first. Raises `UsageError` for an unknown department, `BundleError` or
    `ArtifactError` for what is damaged, `RuntimeUnavailableError` without the extra `sign`.
    """
    if find_spec("cyclonedx") is None:
        raise RuntimeUnavailableError(
            "cyclonedx-python-lib is not installed",
            fix="python -m pip install 'lorkd-deploy[sign]'",
        )
    opened = open_run(run)
    sources = read_sources(opened)
    known = sources.manifest.departments
    for name in department:
        if name not in known:
            raise unknown_name("department", name, known, where=opened.path)
    folder = opened.path / FOLDER if out is None else Path(out)
    documents = {name: _document(sources, name) for name in department or known}
    files = {folder / f"{name}{SUFFIX}": text for name, text in documents.items()}
    for file, text in files.items():
        write_atomic(file, text)
    return list(files)


def _document(sources: Sources, department: str) -> bytes:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    tasks = sources.tasks(department)
    made = Bom()
    made.metadata.tools = ToolRepository(
        components=[Component(name=NAME, version=__version__, type=ComponentType.APPLICATION)]
    )
    whole = Component(
        name=department,
        version=sources.bundle.sha256[:12],
        type=ComponentType.APPLICATION,
        bom_ref="department",
        description=f"Low-rank experts of the run {sources.manifest.name}",
    )
    made.metadata.component = whole
    shared = list(_shared(sources))
    packages = list(_packages(sources, department))
    made.components.update([*shared, *packages])
    for task in tasks:
        model, data = _model(sources, task), _data(task)
        parts = [data, *_files(sources, task)]
        made.components.update([model, *parts])
        made.register_dependency(whole, [model])
        made.register_dependency(model, [*parts, *shared, *packages])
    outputter = make_outputter(made, OutputFormat.JSON, SchemaVersion.V1_6)
    document = json.loads(outputter.output_as_string())
    cards = {_ref(task): _card(sources, task) for task in tasks}
    for component in document["components"]:
        if card := cards.get(component["bom-ref"]):
            component["modelCard"] = card
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _ref(task: TaskEntry) -> str:
    return f"task:{task.name}"


def _model(sources: Sources, task: TaskEntry) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    said = {"department": task.department, "kind": task.kind, "classes": ", ".join(task.classes),
            "rank": task.shown_rank, "alpha": task.alpha, "fine-tuned model sha256": task.model,
            "preprocessing sha256": sources.manifest.preprocess_sha256,
            "dicom rules sha256": task.dicom and task.dicom.sha256,
            "recipe sha256": sources.manifest.recipe_sha256}  # fmt: skip
    return Component(
        name=task.name,
        version=sources.bundle.sha256[:12],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_ref(task),
        properties=_properties(said),
    )


def _data(task: TaskEntry) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=str(task.data.get("name") or task.name),
        type=ComponentType.DATA,
        bom_ref=f"data:{task.name}",
        description=f"training, validation and test images of {task.name}",
        properties=_properties(task.data),
    )


def _properties(said: Any) -> list[Any]:
    from cyclonedx.model import Property

    return [
        Property(
            name=f"lorkd:{key.replace(' ', '_')}",
            value=value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        )
        for key, value in sorted(said.items())
        if value is not None
    ]


def _shared(sources: Sources) -> Iterator[Component]:
    """W0, the graph, and the model that they were made from."""
    from cyclonedx.model.component import Component, ComponentType

    manifest = sources.manifest
    for name in (BASE, TEMPLATE):
        yield _file(f"bundle/{name}", manifest.files[name].sha256)
    origin = sources.teacher.sha256 if sources.teacher else manifest.extracted_from
    if origin is not None:
        yield Component(
            name=sources.teacher.manifest.architecture if sources.teacher else "base",
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref="foundation-model",
            description="the foundation model that was decomposed"
            if sources.teacher
            else "the model that the fine-tuned ones came from",
            hashes=_sha256(origin),
        )


def _files(sources: Sources, task: TaskEntry) -> Iterator[Component]:
    """A task's weights and its engines' files."""
    name = expert_file(task.name)
    yield _file(f"bundle/{name}", sources.manifest.files[name].sha256)
    for artifact in sources.artifacts:
        if artifact.engine == task.name:
            for file in artifact.files:
                yield _file(f"export/{artifact.name}/{file.name}", file.sha256)


def _file(name: str, sha256: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=name, type=ComponentType.FILE, bom_ref=f"file:{name}", hashes=_sha256(sha256)
    )


def _sha256(value: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=value)]


def _packages(sources: Sources, department: str) -> Iterator[Component]:
    """The packages that were installed where it was trained, and where its engines were built."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    roles = {package: {"training"} for package in sources.manifest.versions.items()}
    for artifact in sources.artifacts:
        if artifact.department == department:
            for package in artifact.environment.items():
                if package[0] not in MACHINE:
                    roles.setdefault(package, set()).add("export")
    for (name, version), of in sorted(roles.items()):
        url = PackageURL("generic" if name == "python" else "pypi", name=name, version=version)
        yield Component(
            name=name,
            version=version,
            type=ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY,
            bom_ref=str(url),
            purl=url,
            properties=_properties({"installed for": ", ".join(sorted(of))}),
        )


def _card(sources: Sources, task: TaskEntry) -> dict[str, Any]:
    """The `modelCard` of the 1.6 schema."""
    size = sources.manifest.preprocess.size
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": f"image classification ({task.kind})",
            "modelArchitecture": sources.manifest.architecture,
            "datasets": [{"ref": f"data:{task.name}"}],
            "inputs": [{"format": f"image, float32 (N, 3, {size}, {size})"}],
            "outputs": [{"format": f"logits, float32 (N, {len(task.classes)})"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(sources, task))},
        "considerations": {
            "useCases": [" ".join(NO_DEVICE), intended_use([task])],
            "technicalLimitations": limits(sources, [task]),
        },
    }


def _metrics(sources: Sources, task: TaskEntry) -> Iterator[dict[str, Any]]:
    """Through each engine that was measured; else what the bundle's own network scored."""
    measured = False
    for pair in sources.pairs_of(task):
        score = pair.score(pair.expert)
        for kind, value in (("accuracy", score.accuracy), ("auc", score.auc)) if score else ():
            if value is not None:
                measured = True
                yield {
                    "type": kind,
                    "value": f"{value.value:.4f}",
                    "slice": f"test split, {pair.target} engine",
                    "confidenceInterval": {
                        "lowerBound": f"{value.low:.4f}",
                        "upperBound": f"{value.high:.4f}",
                    },
                }
    if not measured:
        for kind, number in sorted(task.metrics.get("expert", {}).items()):
            yield {"type": kind, "value": f"{number:.4f}", "slice": "test split, before export"}
