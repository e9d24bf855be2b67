"""`lorkd doctor` on this machine, on one without torch, and on broken ones."""

from __future__ import annotations

import importlib.util
import platform
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path

import pytest

from lorkd_deploy import diagnosis as machine
from lorkd_deploy import doctor
from lorkd_deploy.diagnosis import Check
from lorkd_deploy.runtime import targets
from tests.trial_target import install_target


def without(monkeypatch: pytest.MonkeyPatch, *absent: str) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None if name in absent else importlib.util.find_spec(name)

    monkeypatch.setattr(machine, "find_spec", find)


def one(checks: list[Check], name: str) -> Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_a_machine_without_torch_and_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "torch", "torchvision", "timm", "jinja2")
    monkeypatch.setattr(machine, "data_folders", lambda: [tmp_path / "nowhere"])
    checks = doctor()
    assert one(checks, "python").found.startswith(platform.python_version())
    assert one(checks, "cpu").status in ("ok", "limited")
    for name in ("torch", "torchvision", "timm"):
        check = one(checks, name)
        assert (check.status, check.fix) == ("missing", "pip install 'lorkd-deploy[train]'")
    report = one(checks, "report")
    assert report.status == "missing" and "jinja2" in report.found
    data = one(checks, "data")
    assert data.status == "missing" and "LORKD_DATA" in (data.fix or "")
    assert {f"target {name}" for name in targets()} <= {check.name for check in checks}
    assert one(checks, "disk").found.count("GiB free") == 2


def test_a_pillow_that_resizes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine._pillow()
    assert known.status == "ok" and version("pillow") in known.found
    monkeypatch.setattr(machine, "resampling_sha256", lambda interpolation: "0" * 64)
    other = machine._pillow()
    assert other.status == "limited" and "other pixels" in other.found and other.fix


def test_data_folders_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "breastmnist.npz").touch()
    monkeypatch.setattr(machine, "data_folders", lambda: [tmp_path / "full", tmp_path / "empty"])
    full, empty = machine._data()
    assert (full.status, empty.status) == ("ok", "limited")
    assert full.found.endswith("1 npz file")


@pytest.mark.thorough
def test_torch_and_what_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("the half with torch isn't installed here")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('no operator torchvision::nms')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    without(monkeypatch, "timm")
    checks = list(machine._training())
    assert one(checks, "torch").status == "ok"
    assert one(checks, "torch").found.startswith(version("torch"))
    assert one(checks, "gpu").status in ("ok", "missing")
    vision = one(checks, "torchvision")
    assert vision.status == "broken"
    assert vision.found == "RuntimeError: no operator torchvision::nms"


@pytest.mark.parametrize(
    ("cards", "torch", "status"),
    [
        ([], {}, "missing"),
        ([], {"gpus": [], "bf16": False}, "missing"),
        (["NVIDIA A2, 570, 15 GiB"], {}, "ok"),
        (["NVIDIA A2, 570, 15 GiB"], {"gpus": [], "bf16": False}, "broken"),
        (["NVIDIA A2, 570, 15 GiB"], {"gpus": ["NVIDIA A2"], "bf16": True}, "ok"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_broken(
    cards: list[str], torch: dict[str, object], status: str
) -> None:
    check = machine._gpu(cards, torch)
    assert check.status == status
    assert (check.fix is not None) == (status == "broken")


PROBES = {
    "works": ("Probe(True, True, '2.0', ('fp32', 'int8'))", "ok", "builds and runs fp32, int8"),
    "builds": ("Probe(True, False, '2.0', ('fp32',), 'no GPU', 'add one')", "limited", "no GPU"),
    "absent": ("Probe(False, False, None, (), 'not installed', 'pip')", "missing", "not installed"),
    "refuses": ("Probe(False, False, '2.0', (), 'old driver', 'update')", "broken", "old driver"),
    "crashes": ("__import__('os').abort()", "broken", "ended with code -6"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("target", PROBES)
def test_each_runtime_is_asked_in_a_process_of_its_own(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, status, said = PROBES[target]
    source = "from lorkd_deploy.runtime import Probe\nprint('hello')\ndef probe(): return "
    install_target(tmp_path, monkeypatch, target, source + answer)
    check = machine._target(target)
    assert check.status == status
    assert said in check.found
