"""`lorkd demo`: the whole way on the embedded images, from nothing to a report."""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.progress import Progress
from lorkd_deploy.schema import Part


class DemoResult(Part):
    """Where the demo's run lies and what to look at first."""

    run: str
    report: str
    engines: int
    verified: int
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
    benchmark(trained.run, progress=progress)
    page = report(trained.run)
    return DemoResult(
        run=trained.run,
        report=str(page.html),
        engines=len(engines),
        verified=len(checked),
        seconds=round(time.monotonic() - began, 1),
    )
