"""Which tests run where there is no torch, and in which order files go to the processes.

`tests/test_packaging.py` runs this suite in an environment without torch, under Python 3.10.
"""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

TORCH_ROOMS = {"evidence", "experts", "models", "training"}
TORCH_IMPORT = re.compile(
    r"^(?:import|from) (?:torch|timm|(?:tests\.)?tiny_backbone|"
    r"lorkd_deploy\.(?:models|training|weight_files))"
    r"|^from lorkd_deploy import .*(?:add_experts|decompose|extract|teacher)",
    re.MULTILINE,
)
# The files that take longest, in this order: begun first, so that none is left to one process at
# the end, and left out by `make quick`.
LONGEST = (
    "test_demo.py",
    "test_packaging.py",
    "test_processes.py",
    "test_study.py",
    "test_servers.py",
    "test_benchmark.py",
    "test_scenarios.py",
    "test_workers.py",
    "test_decompose.py",
    "test_graph_template.py",
    "test_extract.py",
    "test_precision.py",
    "test_readme.py",
    "test_compiled.py",
    "test_memory.py",
    "test_verify.py",
    "test_in_chromium.py",
    "test_knowledge_separation.py",
    "test_auto_rank.py",
    "test_drilldown.py",
    "test_gates.py",
    "test_odd_networks.py",
    "test_fuzz.py",
)
# Files and rooms that train, serve, kill or start process after process: `make quick` leaves them
# out too, the suite under Python 3.10 doesn't. What they are about has a quicker test beside them.
THOROUGH = (
    "clinic/test_listen.py",
    "clinic/test_signature.py",
    "deploy/graphs/test_adapters.py",
    "deploy/graphs/test_raw.py",
    "deploy/precision/test_sensitivity.py",
    "deploy/programs/test_layouts.py",
    "deploy/test_predict_dicom.py",
    "deploy/test_third_party.py",
    "dicom/test_hostile.py",
    "evidence/pages/test_study_table.py",
    "evidence/test_cluster.py",
    "evidence/test_costs.py",
    "evidence/test_train.py",
    "evidence/test_transfer.py",
    "models/test_folders.py",
    "precisions/test_sensitivity.py",
    "reliability",
    "reporting/test_bom.py",
    "test_cases.py",
    "test_examples.py",
    "training/bundling/test_bundle_of_experts.py",
    "training/bundling/test_maps.py",
    "training/test_grow.py",
    "training/test_run_from_csv.py",
    "training/test_run_from_dicom.py",
    "training/test_safety.py",
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


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by what is marked here
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first, all others as they were, and mark their tests `slow`.

    What is in `THOROUGH` is marked so.
    """
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    thorough = {Path(__file__).parent / name for name in THOROUGH}
    for item in items:
        if item.path.name in order:
            item.add_marker(pytest.mark.slow)
        if not thorough.isdisjoint((item.path, *item.path.parents)):
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(autouse=True)
def _log_as_imported() -> None:
    """The command line sets up the library's log, and `caplog` sees what the log lets through."""
    logger = logging.getLogger("lorkd_deploy")
    logger.setLevel(logging.NOTSET)
    logger.handlers = []
