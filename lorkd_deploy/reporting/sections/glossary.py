"""The report's words for a reader who is no engineer; a term is listed where the page uses it."""

from __future__ import annotations

from lorkd_deploy.reporting.facts.sources import Sources

_ALWAYS = (
    (
        "Foundation model",
        "the large network that was trained on all departments' images together; also called the "
        "teacher",
    ),
    ("Expert", "the small network that was taken out of it for one task of a department"),
    (
        "Engine",
        "an expert (or the foundation model) as a file that a runtime executes, e.g. ONNX Runtime; "
        "fp32, fp16 and int8 say how precisely it computes",
    ),
    (
        "Label flips",
        "images for which an engine names a different class than the network it was made from",
    ),
)
_MEASURED = (
    (
        "Latency, median (p50)",
        "half of the calls take less than this; 99 of 100 take less than the p99, which tells how "
        "bad the slow ones are",
    ),
    ("Throughput", "images per second when one batch follows another"),
    (
        "95 % interval",
        "where the true value lies, as far as chance is concerned: a difference whose interval "
        "contains zero may be no difference at all",
    ),
    ("Points", "percentage points: from 85 % to 84 % is one point"),
)
_SCORED = (
    (
        "Accuracy",
        "the share of the test images that were answered correctly; to be compared with the "
        "majority class, which a model reaches by always saying the same",
    ),
    (
        "AUC",
        "how well sick and healthy are told apart whatever the threshold: 0.5 is guessing, 1 is "
        "perfect",
    ),
    ("Sensitivity", "of the images that show the finding, the share in which it was found"),
    ("Specificity", "of the images that don't show it, the share that was cleared"),
    (
        "Calibration",
        "whether answers that are given with 90 % confidence are right in 90 of 100 cases",
    ),
)


def glossary(sources: Sources) -> tuple[tuple[str, str], ...]:
    """Term and meaning, in the order in which a reader meets them."""
    profile = sources.profile
    if profile is None:
        return _ALWAYS
    scored = _SCORED if any(engine.scores for engine in profile.engines) else ()
    return (*_ALWAYS[:3], *_MEASURED, *scored, *_ALWAYS[3:])
