"""A model card for each department, in Hugging Face's format: YAML front matter, then Markdown.

https://huggingface.co/docs/hub/model-cards, and `model-index` as in Papers with Code's form.
Filled from what was measured and recorded; a gap is said, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.reporting.cells import UNMEASURED
from lorkd_deploy.reporting.facts import cautions
from lorkd_deploy.reporting.facts.limits import intended_use, limits
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.markdown import facts, grid, plain, section
from lorkd_deploy.reporting.sections import first_screen
from lorkd_deploy.reporting.sections.chapter import ANSWERS, tables_of
from lorkd_deploy.reporting.tables import accuracy, latency, mlperf
from lorkd_deploy.reporting.tables.parity import parity
from lorkd_deploy.reporting.words import NO_DEVICE, count, describe

_GAP = "not recorded here"


def model_card(sources: Sources, department: str) -> str:
    """The card of one department as text."""
    tasks = sources.tasks(department)
    head = yaml.safe_dump(
        _front_matter(sources, tasks), sort_keys=False, allow_unicode=True, width=100
    )
    parts = [
        f"---\n{head}---",
        f"# {plain(department)}: low-rank experts",
        f"**{NO_DEVICE[0]}** {NO_DEVICE[1]}",
        plain(first_screen.decomposed(sources)),
        "## Tasks",
        "\n".join(f"- {plain(describe(task))}" for task in tasks),
        *_use(tasks),
        *_data(tasks, _attributes(sources, department)),
        *_decomposition(sources, tasks),
        *_evaluation(sources, department),
        *_speed(sources, department),
        *_scenarios(sources, department),
        "## Parity of the engines",
        grid(parity(sources, department)),
        "## Limits",
        _bullets(limits(sources, tasks)),
        "## Hashes",
        facts(tuple(_hashes(sources, tasks))),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(sources: Sources, tasks: list[TaskEntry]) -> dict[str, Any]:
    results = [entry for task in tasks if (entry := _index(sources, task))]
    head: dict[str, Any] = {
        "language": "en",
        "license": "unknown",
        "library_name": "lorkd-deploy",
        "pipeline_tag": "image-classification",
        "tags": ["medical-imaging", "knowledge-decomposition", "low-rank", "not-a-medical-device"],
        "metrics": ["accuracy", "roc_auc"],
    }
    if results:
        name = f"{sources.manifest.name}-{tasks[0].department}"
        head["model-index"] = [{"name": name, "results": results}]
    return head


def _index(sources: Sources, task: TaskEntry) -> dict[str, Any] | None:
    """The task's result through its first measured engine; None where nothing was measured."""
    pair = next((p for p in sources.pairs_of(task) if p.score(p.expert)), None)
    score = pair.score(pair.expert) if pair else None
    if pair is None or score is None:
        return None
    metrics = [
        {
            "type": kind,
            "value": round(value.value, 4),
            "name": f"{name}; 95 % interval {value.low:.4f} to {value.high:.4f}, {pair.target} "
            "engine",
        }
        for kind, name, value in (
            ("accuracy", "Accuracy", score.accuracy),
            ("roc_auc", "AUC (macro, one against the rest)", score.auc),
        )
        if value
    ]
    return {
        "task": {"type": "image-classification", "name": task.name},
        "dataset": {"name": _source(task), "type": _source(task), "split": "test"},
        "metrics": metrics,
    }


def _source(task: TaskEntry) -> str:
    parts = [str(task.data[key]) for key in ("source", "name", "path") if task.data.get(key)]
    return "/".join(parts) or task.name


def _use(tasks: list[TaskEntry]) -> list[str]:
    return [
        "## Intended use",
        plain(intended_use(tasks)),
        "Not intended: diagnosis, triage or treatment of patients; images of a different kind, "
        "device or preparation than the data below; any use that needs a cleared medical device.",
    ]


def _attributes(sources: Sources, department: str) -> str:
    """By what the figures are shown too: `age, sex`."""
    scores = [pair.score(pair.expert) for pair in sources.pairs(department)]
    names = [group.attribute for score in scores if score for group in score.subgroups]
    return ", ".join(dict.fromkeys(names))


def _data(tasks: list[TaskEntry], attributes: str) -> list[str]:
    lines = []
    for task in tasks:
        recorded = ", ".join(
            f"{key} {value}" for key, value in sorted(task.data.items()) if value is not None
        )
        lines.append(f"- {plain(task.name)}: {plain(recorded) or _GAP}")
    return [
        "## Data",
        "\n".join(lines),
        f"Training, validation and test images are the source's own splits. Patients' ages, sexes, "
        f"devices and sites: {plain(attributes) or _GAP}. The data's licence is its source's; see "
        "there.",
    ]


def _decomposition(sources: Sources, tasks: list[TaskEntry]) -> list[str]:
    manifest = sources.manifest
    teacher = sources.teacher.manifest.architecture if sources.teacher else _GAP
    ranks = ", ".join(
        f"{task.name} rank {task.shown_rank or _GAP}, alpha "
        f"{f'{task.alpha:g}' if task.alpha else _GAP}"
        for task in tasks
    )
    listed: list[tuple[str, str]] = [
        ("Foundation model (teacher)", teacher),
        ("Shared backbone", manifest.architecture),
        ("Experts", ranks),
        ("Layers with experts", str(len(manifest.layers))),
        ("Parameters", ", ".join(f"{k} {v:,}" for k, v in sorted(manifest.parameters.items()))),
        ("Recipe", manifest.name),
        ("Decomposed", manifest.created),
        ("Input", f"{manifest.preprocess.size} × {manifest.preprocess.size} px, RGB"),
    ]
    return [
        "## How it was decomposed",
        "Low-rank knowledge decomposition (LoRKD, CVPR 2024, arXiv 2404.17184): one shared "
        "backbone is trained together with a low-rank expert for each task; for deployment the "
        "expert is added into the backbone's weights, which gives one dense engine per task.",
        facts(tuple(listed)),
    ]


def _evaluation(sources: Sources, department: str) -> list[str]:
    first, *others = tables_of(sources, department, ANSWERS)
    parts = ["## Evaluation", plain(accuracy.INTRO), grid(first)]
    return parts + [part for table in others for part in section(table, 3)]


def _speed(sources: Sources, department: str) -> list[str]:
    title = "## Latency and memory"
    table = latency.latency(sources, department)
    if table is None or sources.profile is None:
        return [title, f"Latency, throughput and memory: {UNMEASURED}."]
    notes = _bullets(map(cautions.sentence, sources.profile.notes))
    beware = ["To know when you read these figures:", notes] if notes else []
    return [
        title,
        plain(f"{_measured(sources.profile)} {latency.INTRO}"),
        *beware,
        grid(table),
    ]


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)


def _measured(profile: Profile) -> str:
    """When, where and how, in two sentences: what a latency is worth without the report."""
    how = profile.protocol
    threads = count(how.threads, "thread")
    pinned = "not pinned" if how.cpus is None else f"pinned to CPU {', '.join(map(str, how.cpus))}"
    return (
        f"Measured {profile.created[:10]} on {profile.environment.cpu}, {threads}, {pinned}; batch "
        f"{min(how.batch_sizes)}. Each engine ran {count(how.rounds, 'round')} in fresh "
        f"processes, the engines interleaved, a round of at least {how.iterations} images and "
        f"{how.seconds:g} s after a warm-up."
    )


def _scenarios(sources: Sources, department: str) -> list[str]:
    """LoadGen's results and what is to be known of them; nothing where none was run."""
    table = mlperf.scenarios(sources, department)
    if table is None:
        return []
    notes = _bullets(mlperf.warnings(sources))
    return [f"## {table.title}", plain(table.caption), *([notes] if notes else []), grid(table)]


def _hashes(sources: Sources, tasks: list[TaskEntry]) -> list[tuple[str, str]]:
    manifest = sources.manifest
    listed = [("Bundle (manifest.json), sha256", sources.bundle.sha256)]
    for task in tasks:
        file = f"experts/{task.name}.safetensors"
        if file in manifest.files:
            listed.append((f"{file}, sha256", manifest.files[file].sha256))
    names = {task.name for task in tasks}
    engines = [artifact for artifact in sources.artifacts if artifact.engine in names]
    for artifact in engines:
        place = f"export/{artifact.name}"
        listed += [(f"{place}/{file.name}, sha256", file.sha256) for file in artifact.files]
    if not engines:
        listed.append(("Engines", "not exported"))
    teacher = sources.teacher.sha256 if sources.teacher else _GAP
    return [
        *listed,
        ("Foundation model's bundle (manifest.json), sha256", teacher),
        ("Preprocessing, sha256", manifest.preprocess_sha256),
        ("Recipe, sha256", manifest.recipe_sha256),
        ("Written by", f"lorkd-deploy {__version__}"),
    ]
