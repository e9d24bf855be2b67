"""The first table's word for each expert, its counts, and what it says is still to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import answers_name, labels_name
from lorkd_deploy.reporting.facts.counts import Counts, counts
from lorkd_deploy.reporting.facts.sources import Pair, Sources, read_sources
from lorkd_deploy.reporting.facts.to_do import to_do
from lorkd_deploy.reporting.facts.verdicts import images_needed, verdict
from lorkd_deploy.reporting.tables.predictive import Worth
from lorkd_deploy.reporting.tables.verdicts import in_counts, verdicts
from lorkd_deploy.run import open_run
from tests.reporting.run_folder import FINDINGS, TASKS, build_run


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    run = build_run(tmp_path_factory.mktemp("verdicts") / "run", tasks=(TASKS[0], FINDINGS))
    return read_sources(open_run(run))


def changed(pair: Pair, bounds: tuple[float, float], gained: int, lost: int, answers: int) -> Pair:
    """The pair with another difference in accuracy; a task of one answer an image."""
    assert pair.comparison and pair.difference and pair.expert
    flips = pair.difference.flips.model_copy(
        update={"gained": gained, "lost": lost, "answers": answers}
    )
    between = Interval(value=(gained - lost) / answers, low=bounds[0], high=bounds[1])
    difference = pair.difference.model_copy(update={"accuracy": between, "flips": flips})
    score = pair.expert.scores[0].model_copy(update={"images": answers})
    return dataclasses.replace(
        pair,
        comparison=pair.comparison.model_copy(update={"scores": (difference,)}),
        expert=pair.expert.model_copy(update={"scores": (score,)}),
    )


@pytest.mark.parametrize(
    ("gained", "lost", "answers", "word"),
    [
        (60, 10, 1000, "better than"),
        (3, 5, 2000, "within 2 points no worse than"),
        (10, 60, 1000, "worse than"),
        (3, 5, 100, "not shown"),
        (0, 0, 40, "not shown"),  # never a difference, and too few images to say so
    ],
)
def test_the_word_follows_the_paired_interval(
    sources: Sources, gained: int, lost: int, answers: int, word: str
) -> None:
    middle = (gained - lost) / answers
    pair = changed(sources.pairs()[0], (middle, middle), gained, lost, answers)
    assert verdict(pair, 2).word == word


def test_the_wider_interval_decides_and_the_margin_is_the_recipe_s(sources: Sources) -> None:
    pair = changed(sources.pairs()[0], (-0.03, 0.03), 5, 5, 5000)
    found = verdict(pair, 2)
    assert found.difference and (found.difference.low, found.word) == (-0.03, "not shown")
    assert verdict(pair, 4).word == "within 4 points no worse than"
    manifest = sources.manifest.model_copy(update={"recipe": {"report": {"margin": 60}}})
    bundle = type(sources.bundle)(sources.bundle.path, manifest, sources.bundle.sha256)
    rows = verdicts(dataclasses.replace(sources, bundle=bundle)).rows
    assert {row[1].text for row in rows} == {"within 60 points no worse than"}


def test_as_many_images_as_are_said_would_tell(sources: Sources) -> None:
    pair = changed(sources.pairs()[0], (0, 0), 5, 5, 100)
    found = verdict(pair, 2).difference
    assert found
    needed = images_needed(pair, found, 2)
    assert needed and 900 <= needed <= 1300
    scaled = changed(pair, (0, 0), 5 * needed // 100, 5 * needed // 100, needed)
    assert verdict(scaled, 2).word == "within 2 points no worse than"
    assert any(f"about {needed:,} test images" in t for t in to_do(sources, pair, verdict(pair, 2)))


def test_an_expert_that_is_not_compared_gets_no_word(sources: Sources) -> None:
    pair = dataclasses.replace(sources.pairs()[0], comparison=None, teacher=None)
    found = verdict(pair, 2)
    assert (found.word, found.difference) == ("not compared here", None)
    assert to_do(sources, pair, found) == [
        "the foundation model beside it: `lorkd export --teacher`"
    ]


def test_counts_are_those_at_the_threshold_of_the_named_finding(sources: Sources) -> None:
    pair = sources.pairs()[0]
    assert pair.expert
    labels = sources.answers[labels_name("ultrasound")]
    of_second = sources.answers[answers_name("ultrasound", pair.expert.engine)][:, 1] >= 0.37
    (found,) = counts(sources, pair.task, pair.expert)
    assert (found.finding, found.shown) == ("normal or benign", int((labels == 1).sum()))
    assert found.found == int((of_second & (labels == 1)).sum())
    recipe = {"departments": [{"tasks": [{"name": "ultrasound", "finding": "malignant"}]}]}
    manifest = sources.manifest.model_copy(update={"recipe": recipe})
    bundle = type(sources.bundle)(sources.bundle.path, manifest, sources.bundle.sha256)
    named = dataclasses.replace(sources, bundle=bundle)
    (turned,) = counts(named, pair.task, pair.expert)
    assert turned.finding == "malignant"
    assert (turned.found, turned.shown) == (found.absent - found.alarms, found.absent)
    assert (turned.alarms, turned.absent) == (found.shown - found.found, found.shown)
    assert in_counts(named, pair).text == (
        f"{turned.found} of {turned.shown} malignant found, "
        f"{turned.alarms} of {turned.absent} others called so"
    )


def test_findings_are_counted_together_and_worth_is_each_one_s(sources: Sources) -> None:
    pair = sources.pairs("lungs")[0]
    found = counts(sources, pair.task, pair.expert)
    assert [each.finding for each in found] == list(FINDINGS[2])
    labels = sources.answers[labels_name("film")]
    assert [each.shown for each in found] == labels.sum(axis=0).tolist()
    assert f"of {labels.sum()} findings found" in in_counts(sources, pair).text


def test_without_kept_answers_what_is_right_is_the_score_s(sources: Sources) -> None:
    bare = dataclasses.replace(sources, answers={})
    assert in_counts(bare, bare.pairs()[0]).text == "134 of 156 right"


def test_predictive_values_are_bayes_rule() -> None:
    # 1,000 people, of whom 10 have it: 9 are found, and 99 of the other 990 are called so too.
    worth = Worth("task", Counts("it", 90, 100, 10, 100))
    assert worth.of_yes(0.01).value == pytest.approx(9 / (9 + 99))
    assert worth.of_no(0.01).value == pytest.approx(891 / (891 + 1))
    yes: Any = worth.of_yes(worth.prevalence)
    assert yes.low < 0.9 < yes.high and yes.value == pytest.approx(0.9)
    assert np.isclose(worth.prevalence, 0.5)
