"""Networks of one structure are exported once per process: that takes longer than to train them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from lorkd_deploy.training.bundling import assemble
from lorkd_deploy.training.bundling.graph_template import Template, graph_template


@pytest.fixture(autouse=True, scope="session")
def _each_structure_exported_once() -> Iterator[None]:
    """For bundles that trainings write. The export itself is tested in `bundling/`, each time."""
    made: dict[Any, Template] = {}

    def remembered(backbone: nn.Module, head: nn.Linear, **options: Any) -> Template:
        modules = [(name, type(part)) for name, part in backbone.named_modules()]
        tensors = [(name, tensor.shape) for name, tensor in backbone.state_dict().items()]
        structure = (repr(backbone), repr(head), str(modules), str(tensors), str(options))
        if structure not in made:
            made[structure] = graph_template(backbone, head, **options)
        return made[structure]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "graph_template", remembered)
        yield
