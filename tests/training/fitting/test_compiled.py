"""`train.compile`: the same training by compiled parts, and who is told that it can't be."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe, write_recipe
from torch import nn

from lorkd_deploy import add_experts
from lorkd_deploy.errors import UsageError
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.recipe import TrainSpec, load_recipe, parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.fitting.compiled import compiled
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.student import build_student
from tests.stopping import KilledError, StopAt
from tests.tiny_backbone import backbone

TESTS = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def _trained(folder: Path, compile: bool, **options: Any) -> ExpertClassifier:
    recipe = tiny_recipe(transfer={"kind": "none"}, experts={"rank": 2, "alpha": 6})
    # SGD: AdamW steps as far where a gradient is nothing but rounding.
    short = {"compile": compile, "epochs": 1, "optimizer": "sgd", "lr": 0.01, "shift": 0.1}
    setup = open_setup(parse_recipe(recipe | {"train": recipe["train"] | short}, where="test"))
    torch.manual_seed(0)
    student = build_student(setup)
    fit_student(Job("decompose", Run(folder, folder / "bundle"), setup, **options), student, None)
    return student


@pytest.mark.slow
@needs_compiler
def test_a_student_learns_the_same_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    before = torch._dynamo.utils.counters["stats"]["calls_captured"]
    fast, plain = _trained(tmp_path / "fast", True), _trained(tmp_path / "plain", False)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > before
    assert fast.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)

    with pytest.raises(KilledError):
        _trained(tmp_path / "killed", True, progress=StopAt(3))
    resumed = _trained(tmp_path / "killed", True, resume=True)
    torch.testing.assert_close(resumed.state_dict(), fast.state_dict(), rtol=0, atol=0)

    # Nothing of it is left in what is scored, exported and copied.
    assert not any("forward" in vars(module) for module in fast.modules())
    x = torch.randn(5, 3, 16, 16)
    copied = copy.deepcopy(fast).eval()
    dense, head = fast.dense(1)
    with torch.no_grad():
        torch.testing.assert_close(copied(x, 1).logits[1], head(dense(x)))


@pytest.mark.slow
@needs_compiler
def test_a_teacher_s_gradients_agree_and_validations_go_the_plain_way() -> None:
    torch.manual_seed(0)
    plain = TeacherNetwork(backbone(), 16, (3, 2))
    fast = copy.deepcopy(plain)
    x, tasks = torch.randn(8, 3, 16, 16), torch.tensor([0, 1] * 4)
    for model, spec in ((plain, TrainSpec()), (fast, TrainSpec(compile=True))):
        with compiled(model, spec):
            for _ in range(2):
                output = model(x, tasks)
                sum(part.square().sum() for part in output.logits).backward()
            captured = torch._dynamo.utils.counters["stats"]["calls_captured"]
            with torch.no_grad():
                model.eval()(x[:3], tasks[:3])
            assert torch._dynamo.utils.counters["stats"]["calls_captured"] == captured
    for (name, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if one.grad is not None:
            scale = float(one.grad.abs().max())
            torch.testing.assert_close(
                other.grad, one.grad, rtol=0, atol=1e-4 * scale + 1e-5, msg=name
            )
    torch.testing.assert_close(dict(fast.named_buffers()), dict(plain.named_buffers()))


@pytest.mark.slow
def test_without_a_compiler_the_command_says_what_to_do(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    environment = os.environ | {
        "CXX": "/nowhere/g++",
        "PATH": "/nowhere",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "lorkd_deploy", "decompose", str(recipe)]
    options = ["--out", str(tmp_path / "run"), "--set", "train.compile=true"]
    done = subprocess.run(
        [*command, *options], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "torch.compile doesn't work on this machine: " in done.stderr
    assert "install a C++ compiler" in done.stderr and "set compile to false" in done.stderr
    assert not (tmp_path / "run" / "teacher").exists()


def test_nothing_to_compile_is_an_error() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with (
        pytest.raises(UsageError, match="nothing to compile"),
        compiled(add_experts(plain, 2), TrainSpec(compile=True)),
    ):
        pass


def test_it_is_off_unless_a_recipe_asks_for_it() -> None:
    assert not load_recipe("demo").train.compile
