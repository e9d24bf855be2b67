"""Which tests run where there is no torch, and in which order files go to the processes.

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
# Files that take longest, in this order: begun first, none is left to one process at the end.
LONGEST = (
    "test_packaging.py",
    "test_processes.py",
    "test_demo.py",
    "test_compiled.py",
    "test_decompose.py",
    "test_readme.py",
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first, all others as they were."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def _log_as_imported() -> None:
    """The command line sets up the library's log, and `caplog` sees what the log lets through."""
    logger = logging.getLogger("lorkd_deploy")
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
