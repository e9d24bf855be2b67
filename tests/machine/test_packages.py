"""Which packages belong to which extra, and which are here: by the installed metadata."""

from __future__ import annotations

from importlib import metadata

import pytest

from lorkd_deploy import __version__
from lorkd_deploy.machine import packages
from lorkd_deploy.machine.packages import extra_with, software, versions

EXTRAS = {
    "accelerate": "train",
    "medmnist": "train",
    "onnxscript": "train",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
    "tensorboard": "tensorboard",
    "onnxruntime": "onnx",
    "nncf": "int8",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "jinja2": "report",
    "numpy": None,
    "pytest": None,
    "hatchling": None,
    "elsewhere": None,
}


@pytest.mark.parametrize("module", EXTRAS)
def test_a_module_is_installed_by_the_smallest_extra(module: str) -> None:
    assert extra_with(module) == EXTRAS[module]


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert found.pop("lorkd-deploy") == __version__
    assert {"numpy", "onnx", "onnxconverter-common", "pillow"} <= set(found)
    assert not {"pytest", "ruff", "hatchling"} & set(found)
    for name, version in found.items():
        assert version == metadata.version(name)
    assert set(software()) == {"python", "lorkd-deploy", *found}


def test_a_copied_folder_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    packages._requirements.cache_clear()
    assert extra_with("torch") is None
    assert set(versions()) <= {"lorkd-deploy", "onnxruntime-gpu"}
    packages._requirements.cache_clear()
