"""The parity table: each engine's logits beside those of the unfused torch model."""

from __future__ import annotations

from lorkd_deploy.bundle.manifest import TEACHER
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.proof.chain import ENGINE, TRAINED
from lorkd_deploy.deploy.proof.parity import Change, Compared
from lorkd_deploy.reporting.cells import EXPERT, FOUNDATION, UNMEASURED, artifact_cell, label
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.table import Cell, Column, Table

WHOLE = f"{TRAINED} → {ENGINE}"
_INPUTS = {"inputs": "generated inputs", "images": "test images"}
_COLUMNS = (
    Column("engine", "Engine", numeric=False),
    Column("link", "Between", numeric=False, hint="the whole chain, then its links"),
    Column("task", "Task", numeric=False),
    Column("compared_on", "Compared on", numeric=False),
    Column("rows", "Images"),
    Column("max_abs", "Largest difference", hint="of any logit, or probability"),
    Column("tolerance", "Tolerance"),
    Column("mean_abs", "Mean difference"),
    Column("cosine", "Cosine", hint="the worst image's"),
    Column("flips", "Label flips"),
    Column("accuracy", "Accuracy change", hint="points, with its 95 % interval"),
    Column("auc", "AUC change", hint="points, with its 95 % interval"),
    Column("verdict", "Verdict", numeric=False),
)


def parity(sources: Sources, department: str | None = None) -> Table:
    """Parity of every engine, or of one department's; what was not exported or run is said."""
    tasks = [t for t in sources.manifest.tasks if department in (None, t.department)]
    rows: list[tuple[Cell, ...]] = []
    for artifact in sources.artifacts:
        if artifact.engine == TEACHER and department is None:
            rows += _rows(sources, artifact)
    if not rows and department is None:
        rows.append(_gap(label(FOUNDATION), "all", "not exported"))
    for task in tasks:
        own = [a for a in sources.artifacts if a.engine == task.name]
        rows += [row for artifact in own for row in _rows(sources, artifact)]
        if not own:
            rows.append(_gap(label(f"{EXPERT} {task.name}"), task.name, "not exported"))
    return Table(
        "proof-table",
        "Parity",
        "Largest absolute difference of any logit, or of any probability of an engine that gives "
        "those, beside what is allowed; the smallest cosine of any image; images whose label "
        "changed.",
        _COLUMNS,
        tuple(rows),
    )


def _rows(sources: Sources, artifact: Artifact) -> list[tuple[Cell, ...]]:
    engine = artifact_cell(artifact)
    bundle = sources.teacher if artifact.engine == TEACHER else sources.bundle
    if bundle is None or artifact.bundle_sha256 not in bundle.origins:
        return [_gap(engine, "all", "exported from another bundle")]
    if not artifact.parity.compared:
        why = "; ".join(artifact.parity.reasons) or "not run here"
        return [_gap(engine, "all", why)]
    rows = [_row(engine, WHOLE, entry) for entry in artifact.parity.compared]
    for link in artifact.parity.links:
        step = f"{link.before} → {link.after}"
        rows += [_row(engine, step, entry) for entry in link.compared]
    for task, why in artifact.parity.images_not_here.items():
        rows.append(_gap(engine, task, f"not run here: {why}", _INPUTS["images"]))
    return rows


def _row(engine: Cell, step: str, entry: Compared) -> tuple[Cell, ...]:
    sure = f"{entry.certain_flips} beyond doubt" if entry.flips else ""
    return (
        engine,
        label(step),
        label(entry.task),
        label(_INPUTS[entry.on]),
        Cell(f"{entry.rows:,}", entry.rows),
        _small(entry.max_abs, ".1e"),
        _small(entry.tolerance, ".1e"),
        _small(entry.mean_abs, ".1e"),
        _small(entry.cosine, ".7f"),
        Cell(str(entry.flips), entry.flips, sure),
        _change(entry.accuracy),
        _change(entry.auc),
        label(
            "passed" if entry.passed else "failed",
            tone="good" if entry.passed else "bad",
            note=f"{entry.non_finite} not finite" if entry.non_finite else "",
        ),
    )


def _small(value: float | None, form: str) -> Cell:
    if value is None:
        return Cell(UNMEASURED, tone="quiet")
    text = format(value, form).replace("e-0", "e-").replace("e+00", "").replace("-", "−")
    return Cell(text, value)


def _change(change: Change | None) -> Cell:
    """A difference in points with its interval."""
    if change is None:
        return Cell("–", tone="quiet")
    low, value, high = (
        f"{100 * part:+.2f}".replace("-", "−")
        for part in (change.low, change.difference, change.high)
    )
    return Cell(value, 100 * change.difference, f"{low} to {high}")


def _gap(engine: Cell, task: str, why: str, on: str = "") -> tuple[Cell, ...]:
    empty = Cell("–", tone="quiet")
    return (
        engine,
        empty,
        label(task),
        label(on) if on else empty,
        *[empty] * 8,
        label(why, tone="quiet"),
    )
