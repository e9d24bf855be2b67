from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.bundle import write
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import BundleError
from lorkd_deploy.storage import sha256_file
from tests.tiny_bundle import make_bundle, random_parts


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_every_file_is_listed_and_equal_parts_give_equal_bytes(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert hashes(first) == hashes(second)
    listed = {name: entry.sha256 for name, entry in load_bundle(first).manifest.files.items()}
    found = hashes(first)
    found.pop("manifest.json")
    assert listed == found
    assert set(found) == {
        "base.safetensors",
        "template.onnx",
        "experts/lung.safetensors",
        "experts/eye.safetensors",
        "parity/lung.safetensors",
        "parity/eye.safetensors",
    }


def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_bundle(tmp_path / "b")
    before = hashes(folder)
    written = []

    def full(path: Path, *args: object) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write_tensors(path, *args)  # type: ignore[arg-type]

    write_tensors = write.write_tensors
    monkeypatch.setattr(write, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        make_bundle(folder, {"lung": 4})
    assert hashes(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_experts_that_are_not_the_tasks(tmp_path: Path) -> None:
    base, experts = random_parts({"lung": 2, "heart": 2})
    with pytest.raises(BundleError, match="heart"):
        make_bundle(tmp_path / "b", {"lung": 2, "eye": 2}, parts=(base, experts))
    assert list(tmp_path.iterdir()) == []


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    base, experts = random_parts({"lung": 2, "eye": 3})
    bundle = load_bundle(make_bundle(tmp_path / "b", parts=(base, experts)))
    assert set(bundle.base) == set(base)
    for name, value in base.items():
        np.testing.assert_array_equal(bundle.base[name], value)
    for name, value in experts["eye"].items():
        np.testing.assert_array_equal(bundle.expert("eye")[name], value)
    assert bundle.logits("eye")["inputs"].shape == (8, 3)
