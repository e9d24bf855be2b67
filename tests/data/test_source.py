"""Where data is looked for."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from lorkd_deploy.data import data_folders, open_data
from lorkd_deploy.data.medmnist import MedMnistData
from lorkd_deploy.data.npz import NpzData
from lorkd_deploy.diagnosis import _data
from lorkd_deploy.errors import DataError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user: neither `HOME` nor an entry in passwd."""

    def nobody(_: int) -> NoReturn:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("LORKD_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_folders_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("LORKD_DATA", "~/scans")
    wanted = [Path("/data"), Path("/home/anna/scans"), Path("/home/anna/.medmnist")]
    assert data_folders("/data") == wanted
    monkeypatch.setenv("LORKD_DATA", os.pathsep.join(["~/scans", "/mnt/eyes"]))
    assert data_folders("/data") == [*wanted[:2], Path("/mnt/eyes"), wanted[2]]


@pytest.mark.usefixtures("homeless")
def test_without_a_home_its_folders_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_folders(tmp_path) == [tmp_path]
    assert data_folders("~/scans") == []
    (check,) = _data()
    assert (check.status, check.found) == ("missing", "no folder is named, nor a home known")
    with pytest.raises(DataError, match=r"no data at '~/scans\.npz'"):
        open_data(NpzData(source="npz", path="~/scans.npz"))
    with pytest.raises(DataError, match="in none of the data folders") as caught:
        open_data(MedMnistData(source="medmnist", name="breastmnist"), download=True)
    assert "no folder" in (caught.value.where or "") and "LORKD_DATA" in (caught.value.fix or "")
    monkeypatch.setenv("LORKD_DATA", str(tmp_path))
    assert [check.found for check in _data()] == [f"{tmp_path}: 0 npz files"]
