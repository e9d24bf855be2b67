"""From `add_experts` to ONNX engines, the rooms together, against the model with experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="experts are trained with torch")
pytest.importorskip("onnxscript", reason="torch's exporter needs it")
ort = pytest.importorskip("onnxruntime", reason="runs the filled graphs")

from torch import nn  # noqa: E402

from lorkd_deploy import add_experts, load_bundle  # noqa: E402
from lorkd_deploy.bundle.manifest import LayerEntry  # noqa: E402
from lorkd_deploy.bundle.write import Contents, write_bundle  # noqa: E402
from lorkd_deploy.deploy.graphs.graph import onnx_model  # noqa: E402
from lorkd_deploy.experts import ExpertClassifier  # noqa: E402
from lorkd_deploy.training.bundling.graph_template import graph_template  # noqa: E402
from tests import tiny_bundle  # noqa: E402

CLASSES, RANKS, ALPHA = (2, 5, 3), (1, 4, 2), 6.0


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, (3, 1), stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, 1),
        nn.BatchNorm2d(6),
        nn.GroupNorm(3, 6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 7),
        nn.LayerNorm(7),
    )


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_engines_equal_the_model_with_experts(tmp_path: Path, norm: Any) -> None:
    torch.manual_seed(0)
    experts = add_experts(network(), len(CLASSES), RANKS, ALPHA, norm=norm)
    model = ExpertClassifier(experts, 7, CLASSES).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith((".A", ".B")):
                tensor.uniform_(0.3, 1.5) if "running_var" in name else tensor.normal_(0.1, 0.6)
        for task in range(len(CLASSES)):
            for name, factor in experts.expert_state(task).items():  # views of the parameters
                if name.endswith(".B"):
                    factor.normal_(0, 0.2)
    template = graph_template(*model.dense(0), 16)

    def arrays(state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        return {prefix + k: v.detach().contiguous().numpy() for k, v in state.items()}

    described = tiny_bundle.manifest(
        tasks=[
            tiny_bundle.entry(f"task{t}", k, rank=RANKS[t], alpha=ALPHA)
            for t, k in enumerate(CLASSES)
        ],
        layers=[LayerEntry(name=e.name, kind=e.kind, shape=e.shape) for e in experts.layers],
        folds=template.folds,
        graph=template.graph,
        norm=norm,
    )
    contents = Contents(
        base=arrays(experts.base_state()),
        experts={
            f"task{t}": arrays(experts.expert_state(t))
            | arrays(model.heads.head(t).state_dict(), "head:")
            for t in range(len(CLASSES))
        },
        logits={f"task{t}": {} for t in range(len(CLASSES))},
        template=template.onnx,
    )
    write_bundle(tmp_path / "bundle", described, contents)
    bundle = load_bundle(tmp_path)
    assert len(bundle.manifest.folds) == 3
    x = torch.randn(6, 3, 16, 16)
    mixed = torch.tensor([2, 0, 1, 1, 0, 2])
    with torch.no_grad():
        expected = model(x, mixed).logits
    for t in range(len(CLASSES)):
        session = ort.InferenceSession(onnx_model(bundle, f"task{t}"))
        found = session.run(None, {"input": x[mixed == t].numpy()})[0]
        assert np.ptp(expected[t].numpy()) > 0.1
        np.testing.assert_allclose(found, expected[t].numpy(), rtol=1e-4, atol=1e-5)
