"""Every figure of this project that needs a GPU, by one command, in at most nine minutes.

    python benchmarks/on_gpu.py --out FOLDER [--data DIR] [--wheels DIR] [--minutes 9]
    python benchmarks/on_gpu.py --out FOLDER --rehearse

It runs from a checkout, under the Python and torch (2.11 or newer) that are there, and installs
and fetches nothing. DIR of `--data` has the files of recipes/seven-tasks.yaml; wheels of `--wheels`
are unpacked beside the script's work and imported from there, for packages that aren't installed.
`benchmarks/pack_for_gpu.sh` makes both.

Each step is a process with a time limit of its own, and writes its file as its figures come:
machine, exactness, knowledge_separation, decompose, latency, study (`benchmarks/gpu/`). What can't
run is said with its reason, and the next step begins. FOLDER/on_gpu.md has all of it.

`--rehearse` takes the same steps, tiny, on the CPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")  # what is imported once, all steps have
REHEARSAL = "**A rehearsal on a CPU: none of these figures means anything.**\n"


@dataclass(frozen=True)
class Step:
    """`run` gives what was found so far, again and again; `lines` says it in Markdown."""

    name: str
    seconds: float
    run: Callable[[Any], Iterator[dict[str, Any]]]
    lines: Callable[[dict[str, Any]], Iterator[str]]


def steps() -> tuple[Step, ...]:
    """In order of worth; the seconds that one leaves go to those behind it, the last takes all."""
    from benchmarks.gpu import evidence, exactness, latency, machine, separation, training

    return (
        Step("machine", 40, machine.run, machine.lines),
        Step("exactness", 60, exactness.run, exactness.lines),
        Step("knowledge_separation", 170, separation.run, separation.lines),
        Step("decompose", 130, training.run, training.lines),
        Step("latency", 80, latency.run, latency.lines),
        Step("study", float("inf"), evidence.run, evidence.lines),
    )


def attempt(step: Step, given: Any, out: Path, seconds: float) -> dict[str, Any]:
    """How one step ended, in a process of its own that is killed after `seconds`."""
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_take, args=(step, given, out, writing))
    began = time.monotonic()
    process.start()
    writing.close()
    try:
        ended = reading.recv() if reading.poll(seconds) else None
    except EOFError:  # it died without a word
        process.join()
        ended = {"status": "failed", "reason": f"its process ended with {process.exitcode}"}
    if ended is None:
        ended = {"status": "stopped", "reason": f"after its limit of {seconds:.0f} s"}
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started too
    process.kill()
    process.join()
    return {"name": step.name, **ended, "seconds": round(time.monotonic() - began, 1)}


def _take(step: Step, given: Any, out: Path, writing: Any) -> None:
    os.setsid()
    from benchmarks.gpu.given import LeftOutError
    from lorkd_deploy.errors import LorkdError, first_line

    try:
        for found in step.run(given):
            _write(out / f"{step.name}.json", found)
        writing.send({"status": "done", "reason": ""})
    except LeftOutError as exc:
        writing.send({"status": "left out", "reason": str(exc)})
    except LorkdError as exc:
        writing.send({"status": "failed", "reason": str(exc)})
    except Exception as exc:  # whatever it is, the next step is still worth its time
        traceback.print_exc()
        reason = f"{type(exc).__name__}: {first_line(exc)}"
        writing.send({"status": "failed", "reason": reason})


def _write(path: Path, document: dict[str, Any]) -> None:
    from lorkd_deploy.storage import write_atomic

    write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())


def page(summary: dict[str, Any], known: tuple[Step, ...], out: Path) -> str:
    """Every step that has ended, with its figures or its reason."""
    titles = {step.name: step for step in known}
    parts = [f"# On {summary['device']}\n"]
    if summary["rehearsal"]:
        parts.append(REHEARSAL)
    parts.append(f"Measured {summary['measured']}; `benchmarks/on_gpu.py` has the protocol.")
    for ended in summary["steps"]:
        parts.append(f"\n## {ended['name']}: {ended['status']}, {ended['seconds']} s\n")
        if ended["reason"]:
            parts.append(f"{ended['reason']}\n")
        file = out / f"{ended['name']}.json"
        if file.exists():
            parts += titles[ended["name"]].lines(json.loads(file.read_text("utf-8")))
    return "\n".join([*parts, ""])


def measure(given: Any, out: Path, seconds: float, known: tuple[Step, ...]) -> int:
    """Take the steps one after another; 1 where one of them failed."""
    began = time.monotonic()
    summary: dict[str, Any] = {
        "device": "a GPU" if given.device == "cuda" else "a CPU",
        "rehearsal": given.rehearsal,
        "measured": time.strftime("%Y-%m-%d"),
        "steps": [],
    }
    for step in known:
        left = max(1.0, seconds - (time.monotonic() - began))
        (out / f"{step.name}.json").unlink(missing_ok=True)  # of an earlier call
        summary["steps"].append(attempt(step, given, out, min(step.seconds, left)))
        print(json.dumps(summary["steps"][-1]), flush=True)
        _write(out / "on_gpu.json", summary)
        (out / "on_gpu.md").write_text(page(summary, known, out), encoding="utf-8")
    return int(any(ended["status"] == "failed" for ended in summary["steps"]))


def make_importable(wheels: Path | None, work: Path) -> None:
    """Let this process and those that it starts import the checkout, and `wheels` before all."""
    site = work / "wheels"
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    places = [str(site), str(ROOT), str(ROOT / "exporters")]
    sys.path[:0] = places
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, known] if known else places)


def _has_gpu() -> bool:
    """Asked in a process of its own: where CUDA has begun, no process may be forked any more."""
    with FORK.Pool(1) as pool:
        return pool.apply(_asks_torch)


def _asks_torch() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="where the result files go")
    parser.add_argument("--data", type=Path, help="the recipe's files, and its teacher's weights")
    parser.add_argument("--wheels", type=Path, help="packages that aren't installed here")
    parser.add_argument(
        "--work", type=Path, help="for runs and engines; by default a temporary one"
    )
    parser.add_argument("--minutes", type=float, default=9, help="for all steps together")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (chosen.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        make_importable(chosen.wheels, work)
        if chosen.data:
            os.environ["LORKD_DATA"] = str(chosen.data.resolve())
        try:
            from benchmarks.gpu.given import Given

            known = steps()
        except ModuleNotFoundError as exc:
            parser.exit(1, f"{exc}: give it by --wheels (benchmarks/pack_for_gpu.sh)\n")
        if not chosen.rehearse and not _has_gpu():
            parser.exit(1, "torch sees no GPU here; --rehearse takes the same steps on the CPU\n")
        data = chosen.data.resolve() if chosen.data else None
        given = Given("cpu" if chosen.rehearse else "cuda", data, work)
        chosen.out.mkdir(parents=True, exist_ok=True)
        seconds = float("inf") if chosen.rehearse else 60 * chosen.minutes
        limited = known if not chosen.rehearse else tuple(_unhurried(step) for step in known)
        return measure(given, chosen.out, seconds, limited)


def _unhurried(step: Step) -> Step:
    return Step(step.name, 600, step.run, step.lines)


if __name__ == "__main__":
    sys.exit(main())
