"""What a student is asked to learn from a teacher, against the formulas, on images of two kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe

from lorkd_deploy.arrays import F64
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import Outputs
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.distillation import components
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.distillation.transfer import FeatureTransfer, transfer_of
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.probe import fit_heads
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.restore import Teacher
from lorkd_deploy.training.networks.student import build_student

CLASSES = (5, 2)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A task of cells, and one of two findings that an image has or hasn't."""
    file = tmp_path_factory.mktemp("data") / "findings.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 20), ("test", 4)):
        labels = rng.integers(0, 2, (count, 2), dtype=np.uint8)
        images = rng.integers(0, 90, (count, 16, 16, 3), dtype=np.uint8)
        images[:, :8] += 150 * labels[:, 0, None, None, None]
        images[..., 0] += 70 * labels[:, 1, None, None]
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(file, **arrays)
    raw = tiny_recipe()
    data = {"source": "npz", "path": str(file), "classes": ["effusion", "nodule"]}
    raw["departments"][1]["tasks"] = [{"name": "findings", "data": data}]
    raw["departments"][0]["tasks"].pop()
    setup = open_setup(parse_recipe(raw, where="test"))
    assert (setup.kinds, setup.classes) == (("multiclass", "multilabel"), CLASSES)
    return setup


@pytest.fixture(scope="module")
def teacher(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """A frozen backbone of random weights with heads that are fitted to it: `fit: heads`."""
    torch.manual_seed(0)
    network = TeacherNetwork(backbone(), 16, setup.classes).eval().requires_grad_(False)
    made = Teacher(network, setup.preprocess)
    job = _job(setup, tmp_path_factory.mktemp("heads"))
    fitted = fit_heads(job, TeacherFeatures(made, job))
    assert fitted.history[0]["auc/findings"] > 0.9
    return made


def _job(setup: Setup, folder: Path, **transfer: Any) -> Job:
    changed = setup.recipe.transfer.model_copy(update=transfer)
    recipe = setup.recipe.model_copy(update={"transfer": changed})
    run = Run(folder, folder / "bundle")
    return Job("decompose", run, open_setup(recipe))


def _known(job: Job, teacher: Teacher, batch: Batch) -> tuple[F64, list[F64]]:
    """The teacher's features of a batch's images, and of all training images of each task."""
    features = TeacherFeatures(teacher, job)
    every = [features.of_task(t).astype(np.float64) for t in range(len(job.setup.names))]
    own = np.concatenate([all_[i] for all_, i in zip(every, batch.indices, strict=True)])
    return own, every


def _outputs(batch: Batch) -> Outputs:
    torch.manual_seed(1)
    logits = [torch.randn(n, k) for n, k in zip(batch.counts, CLASSES, strict=True)]
    return Outputs(torch.randn(len(batch.images), 12), tuple(logits))


def _components(every: list[F64], count: int) -> F64:
    """The first components of all tasks' images, `(n, count)`, by SVD."""
    x = np.concatenate(every)
    x = (x - x.mean(0)) / (x.std(0) + 1e-3)
    z = x @ np.linalg.svd(x, full_matrices=False)[2][:count].T
    return z / z.std(0)


def test_logits_of_fitted_heads_and_of_findings(
    setup: Setup, teacher: Teacher, tmp_path: Path
) -> None:
    job = _job(setup, tmp_path, kind="logits", tau=3)
    batch = job.setup.loader(job.spec, 1).at(0)
    transfer, facts = transfer_of(job, teacher, 12)
    output = _outputs(batch)
    features, _ = _known(job, teacher, batch)
    own = np.split(features, np.cumsum(batch.counts)[:-1])
    total = 0.0
    for number, kind in enumerate(setup.kinds):
        head = teacher.network.heads.head(number).double()
        t = head(torch.from_numpy(own[number])) / 3
        head.float()
        s = output.logits[number].double() / 3
        if kind == "multiclass":
            p, q = torch.softmax(t, 1), torch.softmax(s, 1)
            total += float((p * (p / q).log()).sum())
        else:
            p, q = torch.sigmoid(t), torch.sigmoid(s)
            each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            total += float(each.mean(1).sum())
    wanted = 9 * total / len(batch.images)
    assert transfer(batch, output).item() == pytest.approx(wanted, rel=1e-4)
    assert not list(transfer.parameters()), "the teacher's heads aren't trained"
    assert facts.keys() == {"teacher_features"}


def test_features_are_regressed_to_standardised_principal_components(
    setup: Setup, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "COUNT", 5)
    monkeypatch.setattr(components, "_CHUNK", 7)
    job = _job(setup, tmp_path, kind="features")
    batch = job.setup.loader(job.spec, 1).at(0)
    transfer, facts = transfer_of(job, teacher, 12)
    _, every = _known(job, teacher, batch)
    z = _components(every, 5)
    rows = np.concatenate(
        [start + i for start, i in zip((0, len(every[0])), batch.indices, strict=True)]
    )
    part = transfer.parts[0]
    assert isinstance(part, FeatureTransfer)
    found = part._components(torch.from_numpy(np.concatenate(every)).float()).numpy()
    signs = np.sign((found * z).sum(0))
    np.testing.assert_allclose(found * signs, z, atol=2e-3)
    output = _outputs(batch)
    with torch.no_grad():
        student = part.projection(output.features).numpy() * signs
    wanted = np.mean((student - z[rows]) ** 2)
    assert transfer(batch, output).item() == pytest.approx(wanted, rel=1e-3)
    held = facts["teacher_components"]
    assert held["count"] == 5
    assert held["sha256"] == sha256_file(tmp_path / "cache" / held["file"])


def test_a_feature_target_cannot_shrink_and_the_papers_can(
    setup: Setup, teacher: Teacher, tmp_path: Path
) -> None:
    """A student that says the same of every image: only a moving target gets closer to that."""
    blind = Outputs(torch.zeros(16, 12), ())

    def least(kind: str) -> tuple[float, float]:
        job = _job(setup, tmp_path / kind, kind=kind, tau=2.0)
        torch.manual_seed(0)
        transfer, _ = transfer_of(job, teacher, 12)
        batches = [job.setup.loader(job.spec, 8).at(step) for step in range(8)]
        optimizer = torch.optim.Adam(transfer.parameters(), lr=0.05)
        losses = []
        for step in range(200):
            loss = transfer(batches[step % 8], blind)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses[:8])), float(np.mean(losses[-8:]))

    first, last = least("paper")
    assert last < 0.1 * first
    first, last = least("features")
    assert last > 0.6, "what is left is the variance of the batch's components, about 1"


@pytest.mark.parametrize("has_heads", [True, False])
def test_both_are_summed_and_without_heads_there_are_only_features(
    setup: Setup, teacher: Teacher, tmp_path: Path, has_heads: bool
) -> None:
    def loss(kind: str, known: Teacher) -> float:
        job = _job(setup, tmp_path, kind=kind)
        torch.manual_seed(0)
        transfer, _ = transfer_of(job, known, 12)
        batch = job.setup.loader(job.spec, 1).at(0)
        return transfer(batch, _outputs(batch)).item()

    both = loss("both", teacher._replace(has_heads=has_heads))
    logits = loss("logits", teacher) if has_heads else 0.0
    assert both == pytest.approx(loss("features", teacher) + logits, rel=1e-5)


def test_the_components_are_read_again_and_those_of_other_tasks_are_left(
    setup: Setup, teacher: Teacher, tmp_path: Path
) -> None:
    first = transfer_of(_job(setup, tmp_path), teacher, 12)[1]
    alone = setup.recipe.model_copy(update={"departments": setup.recipe.departments[:1]})
    job = Job("decompose", Run(tmp_path, tmp_path / "bundle"), open_setup(alone))
    other = transfer_of(job, teacher, 12)[1]
    assert other["teacher_components"]["file"] != first["teacher_components"]["file"]
    file = tmp_path / "cache" / first["teacher_components"]["file"]
    written = file.stat().st_mtime_ns
    again = transfer_of(_job(setup, tmp_path), teacher, 12)[1]
    assert again == first and file.stat().st_mtime_ns == written


def test_features_that_tell_nothing_are_an_error(setup: Setup, tmp_path: Path) -> None:
    network = TeacherNetwork(backbone(), 16, setup.classes).eval().requires_grad_(False)
    last = network.backbone[5]
    torch.nn.init.zeros_(last.weight)
    with pytest.raises(ModelError, match="the same for every training image"):
        transfer_of(_job(setup, tmp_path), Teacher(network, setup.preprocess), 12)


def test_a_student_learns_what_the_teacher_knows(
    setup: Setup, teacher: Teacher, tmp_path: Path
) -> None:
    """Under the default the transfer's loss falls below what knowing nothing gives."""
    job = _job(setup, tmp_path)
    torch.manual_seed(0)
    student = build_student(job.setup)
    fitted = fit_student(job, student, teacher)
    losses = [entry["transfer"] for entry in fitted.history]
    assert losses[-1] < losses[0]
    assert fitted.notes["teacher_components"]["count"] <= 16
