from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle import parity_inputs as inputs_module
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.reference import Reference
from lorkd_deploy.errors import BundleError
from tests.deploy.made_run import true_logits


class Exact:
    """A runner that is the unfused network itself; remembers its batches."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, run: Path, task: str) -> None:
        self.run, self.task, self.batches = run, task, [0][:0]

    def __call__(self, batch: Any) -> Any:
        assert batch.dtype == np.float32
        self.batches.append(len(batch))
        return true_logits(self.run, self.task, batch).astype(np.float32)


@pytest.fixture
def reference(run: Path) -> Reference:
    return Reference(load_bundle(run))


def test_the_model_itself_is_equal_to_its_reference(run: Path, reference: Reference) -> None:
    runner = Exact(run, "findings")
    parity = reference.check("findings", runner, "fp32")  # type: ignore[arg-type]
    assert (parity.status, parity.max_abs, parity.flips) == ("passed", 0.0, 0)
    # The first image alone, as a device runs it, and then together: a fixed batch would show.
    assert runner.batches == [1, 7, 1, 4]


def test_inputs_that_another_version_generates(
    run: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inputs_module,
        "parity_inputs",
        lambda count, size, seed: np.zeros((count, size, size, 3), np.uint8),
    )
    with pytest.raises(BundleError, match="parity inputs") as caught:
        reference.check("eye", Exact(run, "eye"), "fp32")  # type: ignore[arg-type]
    assert "0.1.0" in str(caught.value.fix)


def test_a_reference_that_lacks_a_tensor(
    run: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = reference.bundle.logits("eye")
    del tensors["eye.sha256"]
    monkeypatch.setattr(Bundle, "logits", lambda *_: tensors)
    with pytest.raises(BundleError, match=r"no reference 'eye\.sha256'"):
        reference.check("eye", Exact(run, "eye"), "fp32")  # type: ignore[arg-type]


def test_a_bundle_without_test_images(
    run: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = reference.bundle.logits("eye")
    tensors |= {name: value[:0] for name, value in tensors.items() if name.startswith("eye.")}
    monkeypatch.setattr(Bundle, "logits", lambda *_: tensors)
    parity = reference.check("eye", Exact(run, "eye"), "fp32")  # type: ignore[arg-type]
    assert parity.status == "passed"
    assert parity.images_not_here == {"eye": "the bundle has no reference for test images"}
