"""`lorkd demo`: the whole way on the embedded images, from nothing to a report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorkd_deploy.progress import Progress
from lorkd_deploy.schema import Part

if TYPE_CHECKING:
    from lorkd_deploy.profiling.profile import Profile


class DemoTask(Part):
    """A task's engine beside the foundation model's: accuracy on the test images that were drawn,
    and how many times faster, at batch 1, and smaller it is.
    """

    department: str
    task: str
    teacher_accuracy: float
    expert_accuracy: float
    faster: float
    smaller: float


class DemoResult(Part):
    """Where the demo's run lies, what came of it, and what to look at first."""

    run: str
    report: str
    engines: int
    verified: int
    tasks: tuple[DemoTask, ...]
    seconds: float


def demo(out: str | Path = "lorkd-demo", *, progress: Progress | None = None) -> DemoResult:
    """Run the shipped recipe `demo` end to end: teacher, decompose, export, verify, benchmark,
    report. Its images are drawn, not measured: it shows the way, it claims no accuracy.

    Raises what the stages raise; `BundleError` where `out` holds another run.
    """
    import time

    from lorkd_deploy.deploy.export import export
    from lorkd_deploy.deploy.verify import verify
    from lorkd_deploy.errors import GateError
    from lorkd_deploy.profiling.benchmark import benchmark
    from lorkd_deploy.reporting.report import report
    from lorkd_deploy.training.decompose import decompose

    began = time.monotonic()
    trained = decompose("demo", out, resume=True, progress=progress)
    engines = export(trained.run, "onnx", teacher=True, progress=progress)
    checked = verify(trained.run, progress=progress)
    failed = [check for check in checked if not check.passed]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(checked)} engines failed verification",
            where=trained.run,
            fix=f"`lorkd verify {trained.run}` shows each of them",
        )
    profile = benchmark(trained.run, progress=progress)
    page = report(trained.run)
    return DemoResult(
        run=trained.run,
        report=str(page.html),
        engines=len(engines),
        verified=len(checked),
        tasks=tuple(_tasks(profile)),
        seconds=round(time.monotonic() - began, 1),
    )


def _tasks(profile: Profile) -> Iterator[DemoTask]:
    accuracy = {
        (engine.kind, score.task): score.accuracy.value
        for engine in profile.engines
        for score in engine.scores
    }
    compared = {one.engine: one for one in profile.comparisons}
    for engine in profile.engines:
        if engine.kind != "expert" or engine.department is None:
            continue
        beside = compared[engine.engine]
        assert beside.ratio is not None  # both were measured at batch 1
        for task in engine.tasks:
            yield DemoTask(
                department=engine.department,
                task=task,
                teacher_accuracy=accuracy["teacher", task],
                expert_accuracy=accuracy["expert", task],
                faster=beside.ratio.ratio.value,
                smaller=beside.size,
            )
