"""bf16 is chosen where a machine computes in it, and never silently emulated."""

from __future__ import annotations

import pytest
import torch

from lorkd_deploy.training.fitting import autocast
from lorkd_deploy.training.fitting.autocast import chosen_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("able", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_looks_at_the_machine(
    able: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": able})
    assert chosen_precision("auto", CPU) == chosen
    assert chosen_precision("fp32", CPU) == "fp32"


def test_an_emulated_bf16_is_done_as_asked_and_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(autocast, "has_bf16", lambda device: False)
    assert chosen_precision("bf16", CPU) == "bf16"
    assert "emulates" in caplog.text
