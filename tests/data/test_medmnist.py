"""The official sets: the list, the folders, the MD5 sums, the download."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lorkd_deploy.data import TaskData, open_data
from lorkd_deploy.data import medmnist as source
from lorkd_deploy.data.medmnist import MedMnistData
from lorkd_deploy.errors import DataError, UsageError
from tests.data.archives import arrays, real_data, save

FILE = "breastmnist_64.npz"


@pytest.fixture(scope="module")
def real() -> Path:
    return real_data()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without data, which is where downloads go."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LORKD_DATA", raising=False)
    return tmp_path / "home"


def opened(
    folder: Path | None,
    name: str = "breastmnist",
    size: Literal[28, 64, 128, 224] = 64,
    *,
    download: bool = True,
) -> TaskData:
    spec = MedMnistData(source="medmnist", name=name, size=size)
    return open_data(spec, folder, download=download)


def download_from(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package look for the file at `url` instead of on the internet."""
    pytest.importorskip("medmnist.dataset", reason="the download needs medmnist and torch")
    from medmnist.info import INFO

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setitem(INFO["breastmnist"], "url_64", url)


def test_the_copied_list_is_the_package_s() -> None:
    info = pytest.importorskip("medmnist.info").INFO
    known = source.known_sets()
    assert sorted(known) == sorted(name for name in info if not name.endswith("3d"))
    assert len(known) == 12
    for name, entry in known.items():
        there = info[name]
        assert entry["python_class"] == there["python_class"]
        assert entry["licence"] == there["license"]
        assert dict(enumerate(entry["classes"])) == {int(k): v for k, v in there["label"].items()}
        assert (entry["kind"] == "multilabel") == there["task"].startswith("multi-label")
        sums = {"28": there["MD5"], **{s: there[f"MD5_{s}"] for s in ("64", "128", "224")}}
        assert entry["md5"] == sums


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_every_set_and_size_is_held_against_its_own_md5(
    tmp_path: Path, size: Literal[28, 64, 128, 224]
) -> None:
    for name, entry in source.known_sets().items():
        path = tmp_path / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz")
        path.write_bytes(b"something else")
        with pytest.raises(DataError, match=entry["md5"][str(size)]) as caught:
            opened(tmp_path, name, size)
        assert caught.value.where == str(path) and "source: npz" in (caught.value.fix or "")


def test_real_images(real: Path) -> None:
    data = opened(real)
    assert data.classes == ("malignant", "normal, benign")
    assert [len(s.images) for s in (data.train, data.val, data.test)] == [546, 78, 156]
    assert data.test.images[155].shape == (64, 64)
    assert np.bincount(data.test.labels).tolist() == [42, 114]
    assert data.provenance == {
        "source": "medmnist",
        "name": FILE,
        "md5": "742edef2a1fd1524b2efff4bd7ba9364",
        "licence": "CC BY 4.0",
    }


def test_ordinal_grades_are_classes(real: Path) -> None:
    data = opened(real, "retinamnist", 28)
    assert (data.classes, data.kind) == (("0", "1", "2", "3", "4"), "multiclass")
    assert np.bincount(data.test.labels).tolist() == [174, 46, 92, 68, 20]


def test_findings_of_the_chest_are_a_multilabel_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    made = arrays(colour=False)
    for split in ("train", "val", "test"):
        made[f"{split}_labels"] = rng.integers(0, 2, (len(made[f"{split}_labels"]), 14), np.uint8)
    path = save(tmp_path / "chestmnist.npz", **made)
    sets = source.known_sets()
    sets["chestmnist"]["md5"]["28"] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(source, "known_sets", lambda: sets)
    data = opened(tmp_path, "chestmnist", 28)
    assert data.kind == "multilabel"
    assert data.classes[:2] == ("atelectasis", "cardiomegaly") and len(data.classes) == 14
    np.testing.assert_array_equal(data.test.labels, made["test_labels"])


def test_the_given_folder_comes_first_then_the_environment_then_home(
    real: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, environment, last = tmp_path / "given", tmp_path / "environment", home / ".medmnist"
    monkeypatch.setenv("LORKD_DATA", str(environment))
    for folder in (last, environment, given):  # each wrong file hides the good one behind it
        folder.mkdir(parents=True)
        shutil.copy(real / FILE, folder)
        assert len(opened(given).test) == 156
        (folder / FILE).write_bytes(b"wrong")
        with pytest.raises(DataError) as caught:
            opened(given)
        assert caught.value.where == str(folder / FILE)


def test_one_flipped_bit_is_found(real: Path, tmp_path: Path) -> None:
    content = bytearray((real / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match="not the official file"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["brestmnist", "nodulemnist3d"])
def test_an_unknown_set_gets_the_nearest_names(name: str) -> None:
    with pytest.raises(UsageError, match="two-dimensional MedMNIST set") as caught:
        opened(None, name)
    near = "breastmnist" if name == "brestmnist" else "mnist"
    assert near in (caught.value.fix or "")


def test_a_missing_file_is_downloaded_once_and_kept(
    real: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(real))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        download_from(f"http://127.0.0.1:{server.server_port}/{FILE}", monkeypatch)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(opened(None).test) == 156
        server.shutdown()
    assert len(opened(None).test) == 156  # the server is gone
    assert [path.name for path in (home / ".medmnist").iterdir()] == [FILE]
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_from("http://127.0.0.1:9/nobody-listens", monkeypatch)
    with pytest.raises(DataError, match=r"download failed: .*refused") as caught:
        opened(None)
    assert str(home / ".medmnist") in (caught.value.where or "")
    assert "LORKD_DATA" in (caught.value.fix or "")
    assert list((home / ".medmnist").iterdir()) == []


def test_nothing_leaves_this_machine_unless_a_download_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_download", lambda *_: pytest.fail("a download was tried"))
    with pytest.raises(DataError, match="nothing is downloaded here"):
        opened(None, download=False)


def test_without_the_package_the_error_says_how_to_get_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DataError, match="the medmnist package") as caught:
        opened(None)
    assert "lorkd-deploy[train]" in (caught.value.fix or "")
