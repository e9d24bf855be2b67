"""benchmarks/pack_for_gpu.sh: parts of a given size, which give back what went in, in its order."""

from __future__ import annotations

import hashlib
import random
import subprocess
import tarfile
from pathlib import Path

from tests.readme import ROOT

SCRIPT = ROOT / "benchmarks" / "pack_for_gpu.sh"
MIB = 2**20


def pack(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_parts_give_back_data_and_wheels(tmp_path: Path) -> None:
    data, wheels, out = tmp_path / "some data", tmp_path / "wheels", tmp_path / "out"
    data.mkdir()
    wheels.mkdir()
    big = random.Random(0).randbytes(2 * MIB + 17)
    (tmp_path / "elsewhere").write_bytes(big)
    (data / "images.npz").symlink_to(tmp_path / "elsewhere")
    (data / "weights.pth").write_bytes(b"weights")
    (data / "notes.txt").write_text("stays")
    (wheels / "some-1-py3-none-any.whl").write_bytes(b"wheel")
    done = pack("-d", data, "-W", wheels, "-s", 1, out)
    assert done.returncode == 0, done.stderr
    parts = sorted(out.glob("part-*"))
    assert [part.stat().st_size for part in parts[:-1]] == [MIB] * (len(parts) - 1)
    assert len(parts) == 3
    sums = dict(reversed(line.split()) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in parts}
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(whole) as archive:
        names = archive.getnames()
        assert names == ["data/images.npz", "data/weights.pth", "wheels/some-1-py3-none-any.whl"]
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "-xf", whole, "-C", tmp_path / "there"], check=True)
    assert (tmp_path / "there" / "data" / "images.npz").read_bytes() == big
    assert "on_gpu.py --data DIR/data --wheels DIR/wheels" in (out / "README").read_text()
    again = pack("-d", data, "-W", wheels, out)
    assert again.returncode == 1 and "not empty" in again.stderr


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for arguments, code, says in (
        ((), 2, "benchmarks/pack_for_gpu.sh [-d DIR]"),
        (("-s", "0.5", tmp_path / "a"), 2, "whole MiB"),
        (("-d", tmp_path, "-W", tmp_path, tmp_path / "b"), 1, "has no .npz and no .pth"),
        (("-W", tmp_path, tmp_path / "c"), 1, "has no wheels"),
    ):
        done = pack(*arguments)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert done.stdout == ""
