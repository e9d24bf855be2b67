from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle import parity_inputs as inputs_module
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.errors import BundleError
from tests import tiny_bundle
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


class OfTheBatch:
    """The tiny bundle's network, whose logits are others by `change` in a batch of several."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, bundle: Bundle, change: float) -> None:
        self.state = tiny_bundle.unfused(bundle.base, bundle.expert("eye"), 2.5)
        self.change = change

    def __call__(self, batch: Any) -> Any:
        logits = tiny_bundle.forward(self.state, batch) + self.change * (len(batch) > 1)
        return logits.astype(np.float32)


@pytest.mark.parametrize("inputs", [1, 2])
def test_an_answer_that_depends_on_the_batch_fails_with_the_fewest_inputs(
    tmp_path: Path, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_bundle.make_bundle(tmp_path / "bundle", inputs=inputs)
    no_images = {
        "eye.index": np.empty(0, np.int64),
        "eye.sha256": np.empty((0, 32), np.uint8),
        "eye.logits": np.empty((0, 3), np.float32),
    }
    tensors = load_bundle(run).logits("eye") | no_images
    monkeypatch.setattr(Bundle, "logits", lambda *_: tensors)
    reference = Reference(load_bundle(run))
    passed, failed = (
        reference.check("eye", OfTheBatch(reference.bundle, change), "fp32")  # type: ignore[arg-type]
        for change in (0.0, 0.1)
    )
    assert (passed.status, failed.status) == ("passed", "failed")
