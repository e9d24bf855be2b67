"""Methods whose answers are made up: what is better is told so, and what isn't shown, that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.analysis.comparison import Comparison, Difference, TestSplit, compared
from lorkd_deploy.evidence.analysis.statistics import Resampled, resampled
from lorkd_deploy.evidence.answers import Answers, joined
from lorkd_deploy.evidence.kept import Kept
from lorkd_deploy.metrics.score import auc, probabilities
from lorkd_deploy.schema import read_part, write_part

SPLITS = [
    TestSplit("cells", "multiclass", np.arange(600) % 3),
    TestSplit("lung", "multiclass", np.arange(400) // 100 % 2, np.arange(400) // 4),
]


def answers(skill: float, seed: int, noise: float = 0.0) -> Answers:
    """Of a training whose skill varies with its seed; images are as hard for each method."""
    logits = {}
    for number, split in enumerate(SPLITS):
        classes = int(split.labels.max()) + 1
        hard = np.random.default_rng(number).normal(size=(len(split.labels), classes))
        own = np.random.default_rng((seed, number))
        moved = skill + noise * own.normal()
        logits[split.task] = (hard + moved * np.eye(classes)[split.labels]).astype(np.float32)
    return Answers(logits, {task: value[:, :2] for task, value in logits.items()})


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(
        SPLITS,
        {
            "mtl": [answers(1.0, s, 0.02) for s in range(5)],
            "twin": [answers(1.15, 10 + s, 0.1) for s in range(5)],
            "experts": [answers(1.2, 20 + s, 0.02) for s in range(5)],
        },
        first="experts",
        n=300,
    )


def of(comparison: Comparison, second: str, task: str | None, metric: str = "auc") -> Difference:
    (found,) = [
        d for d in comparison.differences if (d.second, d.task, d.metric) == (second, task, metric)
    ]
    return found


def test_a_difference_beyond_both_noises_is_better_and_the_other_way_round_worse(
    comparison: Comparison,
) -> None:
    for task in ("cells", "lung", None):
        found = of(comparison, "mtl", task)
        assert found.verdict == "better"
        assert found.estimate.interval is not None
        assert 0 < found.estimate.interval.low < found.estimate.value
        assert found.needed is None
    turned = compared(
        SPLITS,
        {
            name: [answers(skill, s, 0.02) for s in range(5)]
            for name, skill in (("a", 1), ("b", 1.3))
        },
        first="a",
        n=200,
    )
    assert {d.verdict for d in turned.differences if d.metric == "auc"} == {"worse"}


def test_a_difference_within_the_seeds_noise_is_not_shown(comparison: Comparison) -> None:
    assert of(comparison, "twin", None).verdict == "not shown"


def test_figures_are_the_metrics_and_their_means(comparison: Comparison) -> None:
    figures = {(f.method, f.task, f.metric): f for f in comparison.figures}
    assert len(figures) == 3 * 3 * 3
    cells, lung = figures["mtl", "cells", "auc"], figures["mtl", "lung", "auc"]
    first = answers(1.0, 0, 0.02).logits["cells"]
    assert cells.seeds[0] == pytest.approx(
        auc(SPLITS[0].labels, probabilities(first, "multiclass"))
    )
    both = figures["mtl", None, "auc"]
    assert both.estimate.value == pytest.approx((np.mean(cells.seeds) + np.mean(lung.seeds)) / 2)


def test_p_values_are_corrected_over_tasks(comparison: Comparison) -> None:
    for found in comparison.differences:
        assert found.p >= found.estimate.p
        if found.task is None:
            assert found.p == found.estimate.p


def test_a_comparison_is_read_back_as_it_was_written(
    comparison: Comparison, tmp_path: Path
) -> None:
    write_part(tmp_path / "comparison.json", comparison)
    again = read_part(tmp_path / "comparison.json", Comparison, BundleError, "again")
    assert again == comparison


def test_answers_are_kept_whole(tmp_path: Path) -> None:
    kept = answers(1.0, 3)
    kept.write(tmp_path / "answers.safetensors")
    again = Answers.read(tmp_path / "answers.safetensors")
    assert again.logits.keys() == again.features.keys() == {"cells", "lung"}
    np.testing.assert_array_equal(again.logits["lung"], kept.logits["lung"])
    np.testing.assert_allclose(again.features["cells"], kept.features["cells"], rtol=1e-3)


def test_trainings_of_single_tasks_are_joined() -> None:
    whole = answers(1.0, 0)
    parts = [Answers({t: whole.logits[t]}, {t: whole.features[t]}) for t in ("lung", "cells")]
    assert joined(parts).logits.keys() == {"lung", "cells"}


def test_what_is_kept_of_a_training_gives_the_same_and_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "mtl": [answers(1.0, seed, 0.02) for seed in range(2)],
        "experts": [answers(1.2, 9 + seed, 0.02) for seed in range(2)],
    }
    wanted = compared(SPLITS, given, first="experts", n=50)
    kept = Kept(tmp_path)
    assert compared(SPLITS, given, first="experts", n=50, kept=kept) == wanted
    assert len(list(tmp_path.iterdir())) == 4
    asked = []

    def told(metric: Any, labels: Any, probs: Any, **how: Any) -> Resampled:
        asked.append(len(probs))
        return resampled(metric, labels, probs, **how)

    monkeypatch.setattr("lorkd_deploy.evidence.analysis.comparison.resampled", told)
    assert compared(SPLITS, given, first="experts", n=50, kept=kept) == wanted
    assert not asked
    (damaged, *_) = sorted(tmp_path.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert compared(SPLITS, given, first="experts", n=50, kept=kept) == wanted
    assert set(asked) == {1}
    grown = given | {"twin": [answers(1.1, 50 + s, 0.02) for s in range(2)]}
    asked.clear()
    found = compared(SPLITS, grown, first="experts", n=50, kept=kept)
    assert set(asked) == {2}
    assert found == compared(SPLITS, grown, first="experts", n=50)
    asked.clear()
    compared(SPLITS, given, first="experts", n=60, kept=kept)
    assert set(asked) == {4}
