"""Image files on request: compact paths, reads that are tried again, lists that are kept."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.arrays import U8
from lorkd_deploy.data import files, listed, open_data
from lorkd_deploy.data.csv import CsvData
from lorkd_deploy.data.files import ImageFiles, Paths
from lorkd_deploy.errors import ImageError
from tests.data.listed import listed as list_of


def test_paths_come_out_as_they_went_in(tmp_path: Path) -> None:
    names = ["a.png", "b/ü.png", "c d/3.png", "日本.png"]
    paths = Paths.of(tmp_path, names)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names
    assert paths[-1] == tmp_path / names[-1] and list(paths[1:3]) == list(paths)[1:3]
    assert list(paths.part(np.array([2, 0]))) == [paths[2], paths[0]]
    with pytest.raises(IndexError):
        paths[4]


class Share:
    """Reads that fail `failures` times by `number`."""

    def __init__(self, failures: int, number: int) -> None:
        self.failures, self.number, self.calls = failures, number, 0

    def __call__(self, path: Path) -> U8:
        self.calls += 1
        if self.calls <= self.failures:
            raise ImageError("not now", where=path) from OSError(self.number, "not now")
        return np.zeros((8, 8), np.uint8)


def test_reads_that_a_network_fails_are_tried_again_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "WAITS", (0.0, 0.0, 0.0))
    paths = Paths.of(tmp_path, ["scan.png"])
    with caplog.at_level(logging.WARNING):
        assert ImageFiles(paths, Share(3, errno.ESTALE))[0].shape == (8, 8)
    assert caplog.text.count("scan.png can't be read now") == 3
    share = Share(4, errno.EIO)
    with pytest.raises(ImageError, match="4 times") as caught:
        ImageFiles(paths, share)[0]
    assert share.calls == 4 and str(caught.value.where).endswith("scan.png")
    denied = Share(1, errno.EACCES)
    with pytest.raises(ImageError, match="not now"):
        ImageFiles(paths, denied)[0]
    assert denied.calls == 1


def test_a_list_that_was_read_is_kept_until_it_or_a_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(listed, "WORTH_KEEPING", 8)
    path = list_of(tmp_path / "scans")
    spec = CsvData(source="csv", path=str(path), group="patient", attributes=("age", "sex"))
    first = open_data(spec)
    kept = list((tmp_path / "cache/lists").glob("*.safetensors"))
    assert len(kept) == 1
    with monkeypatch.context() as patched:
        patched.setattr(listed, "_missing", None)  # a list that is read anew would call it
        again = open_data(spec)
    assert again.provenance == first.provenance and again.classes == first.classes
    for name in ("train", "val", "test"):
        one, other = getattr(first, name), getattr(again, name)
        assert (one.labels == other.labels).all() and (one.groups == other.groups).all()
        assert list(one.images.paths) == list(other.images.paths)
        for key, attribute in one.attributes.items():
            assert attribute.values == other.attributes[key].values
            assert (attribute.codes == other.attributes[key].codes).all()
    (tmp_path / "scans/a/1.png").unlink()
    with pytest.raises(Exception, match="1 of 8 files are missing"):
        open_data(spec)
    kept[0].write_bytes(b"damaged")
    with pytest.raises(Exception, match="1 of 8 files are missing"):
        open_data(spec)
