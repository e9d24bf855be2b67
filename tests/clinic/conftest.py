from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.pack import pack
from tests.deploy.made_run import make_run


@pytest.fixture(scope="session")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The department `clinic` (tasks eye and findings) as `lorkd pack` delivers it, with engines
    of ONNX Runtime and OpenVINO; not to be changed.
    """
    pytest.importorskip("openvino", reason="extra `openvino` is not installed")
    folder = tmp_path_factory.mktemp("delivered")
    make_run(folder / "run", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORKD_DATA", str(folder / "data"))
        for target in ("onnx", "openvino"):
            export(folder / "run", target, department=["clinic"])
    pack(folder / "run", "clinic", folder / "clinic")
    return folder / "clinic"


@pytest.fixture
def department(delivered: Path, tmp_path: Path) -> Path:
    """A copy of the delivered department."""
    return shutil.copytree(delivered, tmp_path / "clinic")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of the size that it is called with, such as `16k`; gone after the test."""
    place = tmp_path / "disk"

    def mounted(size: str) -> Path:
        place.mkdir()
        call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(call, capture_output=True, check=False).returncode:
            pytest.skip("a small disk is mounted by root alone, and not in every container")
        return place

    yield mounted
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)
