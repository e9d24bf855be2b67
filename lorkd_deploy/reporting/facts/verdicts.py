"""Is an expert as good as the foundation model, on these images, through these engines?"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lorkd_deploy.metrics.interval import Interval, paired_shares
from lorkd_deploy.profiling.figures import ACCURACY
from lorkd_deploy.profiling.profile import Difference
from lorkd_deploy.recipe import ReportSpec
from lorkd_deploy.reporting.facts.sources import Pair, Sources
from lorkd_deploy.reporting.table import Tone

BETTER, WORSE, NOT_SHOWN = "better than", "worse than", "not shown"
NO_WORSE = "within {margin:g} points no worse than"
_OUT_OF_REACH = 30  # times the test images that there are
UNCOMPARED = "not compared here"


@dataclass(frozen=True)
class Verdict:
    """`word` of an expert against the foundation model; `difference` in accuracy (0 … 1, expert
    minus foundation model) with the interval that decides, None where the two weren't compared."""

    word: str
    tone: Tone
    difference: Interval | None = None


def margin(sources: Sources) -> float:
    """The recipe's margin in points, or its default."""
    return ReportSpec.model_validate(sources.manifest.recipe.get("report", {})).margin


def verdict(pair: Pair, margin: float) -> Verdict:
    """From the paired interval: *better than* above zero, *no worse than* above −`margin` (points),
    *worse than* below zero, else *not shown*.

    A gain over a foundation model that knows nothing isn't coloured.
    """
    if pair.difference is None:
        return Verdict(UNCOMPARED, "quiet")
    found = paired(pair.difference, pair)
    gain: Tone = "" if pair.weak_teacher else "good"
    if found.low > 0:
        return Verdict(BETTER, gain, found)
    if ACCURACY.scale * found.low >= -margin:
        return Verdict(NO_WORSE.format(margin=margin), gain, found)
    if found.high < 0:
        return Verdict(WORSE, "bad", found)
    return Verdict(NOT_SHOWN, "", found)


def paired(difference: Difference, pair: Pair) -> Interval:
    """The difference in accuracy with the wider of two intervals: the bootstrap's and the paired
    score interval, which knows that few images which both answer alike prove little.

    For the latter an image with several findings counts as one answer.
    """
    boot, flips, score = difference.accuracy, difference.flips, pair.score(pair.expert)
    each = flips.answers / score.images if score else 1
    exact = paired_shares(flips.gained / each, flips.lost / each, flips.answers / each)
    return Interval(value=boot.value, low=min(boot.low, exact.low), high=max(boot.high, exact.high))


def images_needed(pair: Pair, found: Interval, margin: float) -> int | None:
    """About how many test images would show that the expert is no worse, if the difference stays:
    an interval shrinks with the square root of their number. None where no number would, or only
    one that is out of reach."""
    score, room = pair.score(pair.expert), found.value + margin / ACCURACY.scale
    if score is None or room <= 0:
        return None
    exact = score.images * ((found.value - found.low) / room) ** 2
    if exact > _OUT_OF_REACH * score.images:
        return None
    digits = 10 ** max(0, len(str(ceil(exact))) - 2)
    return int(ceil(exact / digits) * digits)
