"""Networks of one structure are exported once: that takes longer than to train them."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from lorkd_deploy.training.bundling import trial
from lorkd_deploy.training.bundling.graph_template import Template, graph_template


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Template]:
    """`graph_template`, which remembers; the processes of pytest-xdist remember it together."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if folder.name.startswith("popen-") else folder) / "templates"
    folder.mkdir(exist_ok=True)
    read: dict[str, Template] = {}

    def remembered(backbone: nn.Module, head: nn.Linear, *given: Any, **options: Any) -> Template:
        modules = [(name, type(part)) for name, part in backbone.named_modules()]
        tensors = [(name, tensor.shape) for name, tensor in backbone.state_dict().items()]
        described = str((backbone, head, modules, tensors, given, options))
        structure = re.sub(r"momentum=[\w.]+", "", described)  # which only a training has
        key = hashlib.sha256(structure.encode()).hexdigest()
        file = folder / key
        if key not in read and file.exists():
            read[key] = pickle.loads(file.read_bytes())
        if key not in read:
            read[key] = graph_template(backbone, head, *given, **options)
            whole = tmp_path_factory.mktemp("template") / key
            whole.write_bytes(pickle.dumps(read[key]))
            whole.replace(file)
        return read[key]

    return remembered


@pytest.fixture(autouse=True, scope="session")
def _trained_networks_exported_once(exported_once: Callable[..., Template]) -> Any:
    """For bundles that trainings write. The export itself is tested in `bundling/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "graph_template", exported_once)
        yield
