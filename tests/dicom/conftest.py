from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def dcmtk() -> None:
    """dcmtk's programs; skips the test where they aren't installed, as in Debian's `dcmtk`."""
    if shutil.which("dcm2pnm") is None:
        pytest.skip("dcmtk is not installed: apt-get install dcmtk")
