"""Which tests run where there is no torch: all but those of the half that needs it.

`tests/test_packaging.py` runs this suite in an environment without torch, under Python 3.10.
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TORCH_ROOMS = {"experts", "training"}
TORCH_IMPORT = re.compile(
    r"^(?:import|from) (?:torch|timm|(?:tests\.)?tiny_backbone|lorkd_deploy\.(?:models|training))"
    r"|^from lorkd_deploy import .*(?:add_experts|decompose|extract|teacher)",
    re.MULTILINE,
)
HAS_TORCH = find_spec("torch") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out, without torch, what imports it: by room, and by the imports of a file."""
    if HAS_TORCH:
        return None
    if collection_path.is_dir():
        return collection_path.name in TORCH_ROOMS or None
    if not collection_path.name.startswith("test_"):
        return None
    return TORCH_IMPORT.search(collection_path.read_text(encoding="utf-8")) is not None or None


@pytest.fixture(autouse=True)
def _log_as_imported() -> None:
    """The command line sets up the library's log, and `caplog` sees what the log lets through."""
    logger = logging.getLogger("lorkd_deploy")
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
