"""An engine's proof as the commands show it: parity, what `--precision auto` chose between, and
what int8 costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorkd_deploy.cli.shared.render import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lorkd_deploy.cli.shared.render import Output
    from lorkd_deploy.deploy.artifact import Artifact
    from lorkd_deploy.deploy.candidates import Candidate
    from lorkd_deploy.deploy.proof.parity import Change, Compared, Parity

COLUMNS = ("parity", "inputs", "test images", "max |difference|", "tolerance", "labels flipped")
CHAIN = (
    "engine",
    "from",
    "to",
    "on",
    "max |difference|",
    "mean",
    "cosine",
    "flips",
    "accuracy, points",
    "AUC, points",
)
MOST = 8  # layers of an engine in int8
CANDIDATES = ("precision", "", "accuracy", "drop, points", "p50 ms", "MiB", "why not")


def cells(parity: Parity | None) -> tuple[object, ...]:
    """One cell for each of `COLUMNS`; difference and tolerance are those of what was nearest to
    failing: generated inputs and test images of each task have tolerances of their own."""
    if parity is None:
        return ("not run",) + (None,) * (len(COLUMNS) - 1)
    rows = {"inputs": 0, "images": 0}
    for compared in parity.compared:
        rows[compared.on] += compared.rows
    worst = parity.worst
    return (
        parity.status,
        rows["inputs"],
        rows["images"] or None,
        None if worst is None else worst.max_abs,
        None if worst is None else worst.tolerance,
        parity.flips,
    )


def show_chain(output: Output, proofs: Iterable[tuple[str, Parity | None]]) -> None:
    """Every link from the trained model to each engine; changes in points with their interval."""
    rows = [row for name, parity in proofs if parity for row in _links(name, parity)]
    if rows:
        output.table("Chain of proof", CHAIN, rows)
    for name, parity in proofs:
        if parity is not None and parity.links_not_here is not None:
            output.text(f"{name}: {parity.links_not_here}")


def _links(name: str, parity: Parity) -> Iterator[tuple[object, ...]]:
    for link in parity.links:
        for entry in link.compared:
            yield (name, link.before, link.after, *_figures(entry))
    for entry in parity.compared:
        yield (name, "unfused torch", "engine", *_figures(entry))


def _figures(entry: Compared) -> tuple[object, ...]:
    return (
        f"{entry.task}, {entry.rows} {entry.on}",
        entry.max_abs,
        entry.mean_abs,
        entry.cosine,
        entry.flips,
        _points(entry.accuracy),
        _points(entry.auc),
    )


def _points(change: Change | None) -> str | None:
    if change is None:
        return None
    low, value, high = (100 * part for part in (change.low, change.difference, change.high))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def show_choices(output: Output, artifacts: Iterable[Artifact]) -> None:
    """What `--precision auto` chose between, one table per engine that it chose."""
    for artifact in artifacts:
        choice = artifact.choice
        if choice is None:
            continue
        output.table(
            f"Candidates of {artifact.department}/{artifact.engine}, at most "
            f"{choice.max_drop:g} points below fp32",
            CANDIDATES,
            [_candidate(entry) for entry in choice.candidates],
        )
        images = sum(choice.images.values())
        output.text(
            f"accuracy on {images} validation images; median of {choice.rounds} interleaved "
            f"rounds at batch 1, {choice.threads} CPU threads"
        )


def _candidate(entry: Candidate) -> tuple[object, ...]:
    accuracy = entry.accuracy
    return (
        entry.precision,
        entry.status,
        sum(accuracy.values()) / len(accuracy) if accuracy else None,
        entry.drop,
        entry.p50_ms,
        None if entry.bytes is None else entry.bytes / MIB,
        entry.reason or "",
    )


def show_sensitivity(output: Output, artifacts: Iterable[Artifact]) -> None:
    """Of each int8 engine that may not lose more than was allowed: which layers it cost most."""
    for artifact in artifacts:
        found = artifact.sensitivity
        if found is None:
            continue
        fp32, whole, mixed = (
            100 * sum(part.values()) / len(part) for part in (found.fp32, found.int8, found.mixed)
        )
        output.text(
            f"{artifact.name}: {len(found.left)} of {len(found.layers)} layers stay in float32; "
            f"accuracy on {found.images} validation images {mixed:.2f} %, in fp32 {fp32:.2f} %, "
            f"with every layer in int8 {whole:.2f} %"
        )
        if not found.groups:  # nothing had to be tried
            continue
        output.table(
            "What int8 costs, the most harmful layers first",
            ("layers", "alone in float32, points", "stay in float32"),
            [
                (", ".join(group.layers), f"{group.gain:+.2f}", "yes" if group.left else "no")
                for group in found.groups[:MOST]
            ],
        )
