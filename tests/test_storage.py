"""Folders and files appear whole or not at all, for one writer at a time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy import storage
from lorkd_deploy.errors import BundleError, LorkdError
from lorkd_deploy.storage import (
    exclusive,
    folder_atomic,
    inside,
    read_tensors,
    write_atomic,
    write_tensors,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture(params=["exchanged", "renamed twice"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds `old`, with and without a system that lets folders change places."""
    if request.param == "renamed twice":
        monkeypatch.setattr(storage, "_exchanged", lambda *_: False)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").touch()
    return tmp_path / "place"


def test_a_folder_takes_the_place_of_the_one_before(place: Path) -> None:
    with folder_atomic(place) as fresh:
        (fresh / "new").touch()
        assert names(place) == ["old"]
    assert names(place) == ["new"]
    assert names(place.parent) == ["place"]


def test_a_block_that_fails_leaves_the_folder_before(place: Path) -> None:
    with pytest.raises(OSError, match="full"), folder_atomic(place) as fresh:
        (fresh / "new").touch()
        raise OSError("full")
    assert (names(place), names(place.parent)) == (["old"], ["place"])


def test_at_no_moment_is_there_nothing(tmp_path: Path) -> None:
    """A reader in another process looks at the folder while it is replaced again and again."""
    (tmp_path / "place").mkdir()
    if not storage._exchanged(tmp_path / "place", tmp_path / "place"):
        pytest.skip("this file system has no exchange of two names")
    code = (
        "import pathlib, sys\n"
        "place, done = map(pathlib.Path, sys.argv[1:])\n"
        "missing = 0\n"
        "print('looking', flush=True)\n"
        "while not done.exists(): missing += not place.exists()\n"
        "sys.exit(missing > 0)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "place"), str(tmp_path / "done")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for _ in range(300):
            with folder_atomic(tmp_path / "place"):
                pass
        (tmp_path / "done").touch()
        assert reader.wait() == 0


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".place.0123abcd.old").mkdir()
    (tmp_path / ".place.0123abcd.old" / "old").touch()
    (tmp_path / ".place.0123abcd.tmp").mkdir()
    (tmp_path / ".placebo.0123abcd.tmp").mkdir()
    with pytest.raises(ValueError, match="stop"), folder_atomic(tmp_path / "place"):
        raise ValueError("stop")
    assert names(tmp_path) == [".placebo.0123abcd.tmp", "place"]
    assert names(tmp_path / "place") == ["old"]


def test_a_full_disk_names_the_file_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", b"before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(tmp_path / "a", b"after")
    assert caught.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    with exclusive(tmp_path, "write"), pytest.raises(LorkdError, match="wanted to export"):  # noqa: SIM117
        with exclusive(tmp_path, "export"):
            pass
    with exclusive(tmp_path, "export"):
        pass


def test_paths_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path.parent)
    for outside in ("..", "a/../../b", "/etc/hostname", "a\\b", "a\0b", "", "link", "link/b"):
        with pytest.raises(BundleError, match="leaves its folder"):
            inside(tmp_path, outside)
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3)])
def test_tensors_keep_their_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones((*shape[::-1],), np.float32).T})
    assert read_tensors(tmp_path / "a.safetensors")["a"].shape == shape


def test_tensors_with_a_digest_show_every_flipped_bit(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"x": np.arange(6.0), "y": np.ones((2, 2), "i8")}
    write_tensors(path, tensors, {"index": '{"digest":"' + "0" * 64 + '"}'}, digest=True)
    assert {name: v.tolist() for name, v in read_tensors(path).items()} == {
        "x": [0, 1, 2, 3, 4, 5],
        "y": [[1, 1], [1, 1]],
    }
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            found = read_tensors(path)
        except BundleError:
            continue
        assert all(np.array_equal(found[name], value) for name, value in tensors.items()), place
