from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorkd_deploy.deploy.export import export
from tests.deploy.made_run import make_run

# Runs are made once and copied: whatever the product writes is flushed to disk, copies are not.


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` and `data`, nothing exported; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    make_run(folder / "run", folder / "data")
    return folder


@pytest.fixture(scope="session")
def made_exported(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every engine and the teacher's; not to be changed."""
    run = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(made / "run", run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORKD_DATA", str(made / "data"))
        export(run, teacher=True)
    return run


@pytest.fixture
def data(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tasks' images, where the product looks for them."""
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "data"))
    return shutil.copytree(made / "data", tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path, made: Path, data: Path) -> Path:
    """A run with bundle and teacher, nothing exported, its images here."""
    return shutil.copytree(made / "run", tmp_path / "run")


@pytest.fixture
def exported(tmp_path: Path, made_exported: Path, data: Path) -> Path:
    """The same run with every engine and the teacher's."""
    return shutil.copytree(made_exported, tmp_path / "exported")
