"""`lorkd doctor`: what works on this machine, and how to mend the rest. Needs no torch.

Whatever loads foreign libraries is tried in a process of its own, so that a broken one becomes a
line in the answer instead of the end of the doctor.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import PIL
import psutil

from lorkd_deploy.data import data_folders
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.processor import allowed_cpus, cpu_limit, cpu_model, usable_cpus
from lorkd_deploy.preprocess import RESAMPLINGS, resampling_sha256
from lorkd_deploy.runtime import targets
from lorkd_deploy.schema import Part

PATIENCE = 120  # s: importing torch for the first time from a slow disk takes that long
LEAST_DISK = 2 << 30  # bytes: a run with a ResNet-50 teacher, its engines and their temporaries
TRAIN = "pip install 'lorkd-deploy[train]'"

_TRAINING = ("torch", "torchvision", "timm")
_IMPORTS = """
import importlib, json
found = {}
for name in %r:
    try:
        found[name] = {"version": importlib.import_module(name).__version__}
    except Exception as exc:
        found[name] = {"error": f"{type(exc).__name__}: {exc}"}
if "version" in found.get("torch", ()):
    import torch
    cuda = torch.cuda.is_available()
    count = torch.cuda.device_count() if cuda else 0
    found["torch"] |= {
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
        "bf16": cuda and torch.cuda.is_bf16_supported(),
    }
print(json.dumps(found))
"""
_PROBE = """
import dataclasses, json
from lorkd_deploy.runtime import exporter
print(json.dumps(dataclasses.asdict(exporter({target!r}).probe())))
"""


class Check(Part):
    """One thing that was checked. `limited`: works in part; `missing`: not installed, or not there;
    `broken`: there, but fails. `fix` says what to do; None where nothing needs doing."""

    name: str
    status: Literal["ok", "limited", "missing", "broken"]
    found: str
    fix: str | None = None


def doctor() -> list[Check]:
    """Check Python, CPU, Pillow, torch, GPU, each target, data, report and disk, in order."""
    names = targets()
    with ThreadPoolExecutor(max_workers=4) as pool:
        training = pool.submit(lambda: list(_training()))
        runtimes = [pool.submit(_target, name) for name in names]
        return [
            _python(),
            _cpu(),
            _pillow(),
            *training.result(),
            *(future.result() for future in runtimes),
            _report(),
            *_data(),
            _disk(),
        ]


def _python() -> Check:
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    if sys.version_info < (3, 10):  # noqa: UP036 (a copied folder runs under any Python)
        fix = "install Python 3.10 or newer"
        return Check(name="python", status="broken", found=f"{version}, {system}", fix=fix)
    return Check(name="python", status="ok", found=f"{version}, {system}")


def _cpu() -> Check:
    limit, allowed = cpu_limit(), allowed_cpus()
    memory = psutil.virtual_memory().total / 2**30
    found = f"{cpu_model()}, {allowed} CPUs, {memory:.0f} GiB memory"
    if limit is not None and limit < allowed:
        return Check(
            name="cpu",
            status="limited",
            found=f"{found}; the container may use {limit:g} CPUs of time",
            fix=f"keep threads at {usable_cpus()} or below when you benchmark",
        )
    return Check(name="cpu", status="ok", found=found)


def _pillow() -> Check:
    """By which way of rounding pictures are resized here, beside those of known versions."""
    here = resampling_sha256("bilinear"), resampling_sha256("bicubic")
    known = RESAMPLINGS.get(here)
    if known is not None:
        found = f"{PIL.__version__}: resizes pictures to the same pixels as {known}"
        return Check(name="pillow", status="ok", found=found)
    return Check(
        name="pillow",
        status="limited",
        found=f"{PIL.__version__}: resizes pictures to other pixels than any version that was "
        "tried, so answers can differ from those of other machines",
        fix="use the Pillow that made the bundle: `lorkd verify` compares and names it",
    )


def _training() -> Iterator[Check]:
    """The packages of the half with torch, and the GPU: what is there and what torch can use."""
    installed = tuple(name for name in _TRAINING if find_spec(name) is not None)
    answer, error = _ask(_IMPORTS % (installed,)) if installed else ({}, "")
    torch = (answer or {}).get("torch", {})
    for name in _TRAINING:
        if name not in installed:
            found = "not installed; only training and decomposing need it"
            yield Check(name=name, status="missing", found=found, fix=TRAIN)
            continue
        said = {"error": error} if answer is None else answer[name]
        if "error" in said:
            fix = f"install torch and torchvision anew, from the same index: {TRAIN}"
            yield Check(name=name, status="broken", found=said["error"], fix=fix)
            continue
        build = ""
        if name == "torch":
            build = f", CUDA {said['cuda']}" if said["cuda"] else ", CPU only"
        yield Check(name=name, status="ok", found=said["version"] + build)
    yield _gpu(Gpus().names(), torch)


def _gpu(cards: Sequence[str], torch: Mapping[str, Any]) -> Check:
    """`cards` as the driver lists them, `torch` what torch said; empty where it can't be asked."""
    if torch.get("gpus"):
        found = ", ".join(torch["gpus"]) + (", bf16" if torch["bf16"] else ", no bf16")
        return Check(name="gpu", status="ok", found=found)
    if not cards:
        return Check(name="gpu", status="missing", found="no NVIDIA GPU: the CPU is used")
    if "gpus" in torch:
        fix = "install a driver and a torch that fit each other: pytorch.org lists the pairs"
        found = f"{'; '.join(cards)}; torch can't use it"
        return Check(name="gpu", status="broken", found=found, fix=fix)
    return Check(name="gpu", status="ok", found="; ".join(cards))


def _target(target: str) -> Check:
    name = f"target {target}"
    answer, error = _ask(_PROBE.format(target=target))
    if answer is None:
        fix = "reinstall the runtime of this target"
        return Check(name=name, status="broken", found=error, fix=fix)
    version, precisions = answer["version"], ", ".join(answer["precisions"])
    abilities = [
        verb
        for verb, able in (("builds", answer["can_build"]), ("runs", answer["can_run"]))
        if able
    ]
    if len(abilities) == 2:
        return Check(name=name, status="ok", found=f"{version}: builds and runs {precisions}")
    reason = answer["reason"] or "the runtime gives no reason"
    if abilities:
        found = f"{version}: only {abilities[0]} engines here; {reason}"
        return Check(name=name, status="limited", found=found, fix=answer["fix"])
    status: Literal["missing", "broken"] = "missing" if version is None else "broken"
    return Check(name=name, status=status, found=reason, fix=answer["fix"])


def _report() -> Check:
    if find_spec("jinja2") is None:
        fix = "pip install 'lorkd-deploy[report]'"
        found = "jinja2 not installed: needed by `lorkd report`"
        return Check(name="report", status="missing", found=found, fix=fix)
    return Check(name="report", status="ok", found="jinja2 is installed")


def _data() -> Iterator[Check]:
    """Each folder that is searched for data, and how many data sets lie in it."""
    folders = data_folders()
    if not any(folder.is_dir() for folder in folders):
        named = ", ".join(str(folder) for folder in folders)
        yield Check(
            name="data",
            status="missing",
            found=f"none of {named} exists" if folders else "no folder is named, nor a home known",
            fix="put MedMNIST's .npz files into a folder and name it by LORKD_DATA; "
            "`lorkd demo` needs none",
        )
        return
    for folder in folders:
        if folder.is_dir():
            count = sum(1 for _ in folder.glob("*.npz"))
            files = "1 npz file" if count == 1 else f"{count} npz files"
            status: Literal["ok", "limited"] = "ok" if count else "limited"
            yield Check(name="data", status=status, found=f"{folder}: {files}")


def _disk() -> Check:
    short = []
    shown = []
    for label, folder in (("here", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        shown.append(f"{label}: {free / 2**30:.1f} GiB free")
        if free < LEAST_DISK:
            short.append(label)
    if short:
        fix = (
            f"free {LEAST_DISK / 2**30:.0f} GiB, or give another --out (TMPDIR for temporary files)"
        )
        return Check(name="disk", status="limited", found=", ".join(shown), fix=fix)
    return Check(name="disk", status="ok", found=", ".join(shown))


def _ask(code: str) -> tuple[dict[str, Any] | None, str]:
    """Run `code` in a fresh Python; → the JSON of its last line, or None and why it failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return None, f"no answer: {exc}"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        return None, lines[-1]
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return None, "it gave no answer"
    return answer, ""
