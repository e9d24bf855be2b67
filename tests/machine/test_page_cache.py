"""Files that the kernel is made to forget, and those that a process maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorkd_deploy.machine.page_cache import cached, forget, mapped_files


def test_the_kernel_forgets_a_file_and_is_asked_whether_it_did(tmp_path: Path) -> None:
    file = tmp_path / "engine.bin"
    file.write_bytes(os.urandom(3 << 20))
    with file.open("rb") as stream:
        assert cached(stream.fileno(), 3 << 20) > 0  # all of it, unless memory is short
    gone = forget([file, tmp_path / "absent"])
    if gone == 0:
        pytest.skip("this file system keeps its files in memory")
    with file.open("rb") as stream:
        still = cached(stream.fileno(), 3 << 20)
    assert gone > 0.9 and still < 0.1 * (3 << 20)  # a page that is in use elsewhere stays
    assert forget([tmp_path / "absent"]) is None


def test_mapped_files_are_listed(tmp_path: Path) -> None:
    assert any("libc" in name for name in mapped_files())
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r--p 0000 08:01 42   /usr/lib/libx.so\n"
        "7f01-7f02 r--p 0000 08:01 43   /tmp/gone.so (deleted)\n"
        "7f02-7f03 rw-p 0000 00:00 0\n7ffd-7ffe rw-p 0000 00:00 0   [stack]\n"
    )
    assert mapped_files(maps) == ["/usr/lib/libx.so"]
