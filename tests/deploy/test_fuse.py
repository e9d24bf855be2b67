from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.fuse import fuse
from lorkd_deploy.errors import UsageError
from lorkd_deploy.storage import read_tensors


def test_the_file_has_the_fused_tensors(run: Path, tmp_path: Path) -> None:
    file = fuse(run, "eye", tmp_path / "new" / "eye.safetensors")
    bundle = load_bundle(run)
    expected = bundle.fuse("eye")
    found = read_tensors(file)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    with safe_open(file, "np") as opened:
        source = json.loads(opened.metadata()["source"])
    assert source == {"task": "eye", "bundle_sha256": bundle.sha256}
    assert fuse(run / "bundle", "eye", tmp_path / "b").read_bytes() == file.read_bytes()


def test_what_can_not_be_fused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no task is called 'ear'"):
        fuse(run, "ear", tmp_path / "f.safetensors")
    with pytest.raises(UsageError, match="a file is needed"):
        fuse(run, "eye", tmp_path)
    assert not (tmp_path / "f.safetensors").exists()
