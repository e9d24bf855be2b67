"""The commands that make a run and its report again."""

from __future__ import annotations

from collections.abc import Iterator

from lorkd_deploy.bundle.manifest import TEACHER, Manifest
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.recipe import load_recipe, shipped_recipes
from lorkd_deploy.reporting.facts.sources import Sources


def commands(sources: Sources) -> tuple[str, ...]:
    """Lines for a shell, `$RUN` being the run's folder; what can't be known is a comment."""
    manifest = sources.manifest
    profile = sources.profile
    return (
        f"RUN=runs/{manifest.name}",
        *_bundle(manifest),
        *dict.fromkeys(line for a in sources.artifacts for line in _export(a)),
        *([_benchmark(profile)] if profile else []),
        "lorkd report $RUN",
    )


def _bundle(manifest: Manifest) -> Iterator[str]:
    if manifest.grown_from or manifest.compressed_from or manifest.extracted_from:
        yield "# the bundle was grown, compressed or extracted: `lorkd inspect $RUN` says from what"
        return
    recipe = manifest.name
    known = recipe in shipped_recipes() and load_recipe(recipe).sha256 == manifest.recipe_sha256
    if not known:
        yield f"# recipe.yaml: the recipe in $RUN/run.json, sha256 {manifest.recipe_sha256}"
        recipe = "recipe.yaml"
    yield f"lorkd teacher {recipe} --out $RUN"
    yield f"lorkd decompose {recipe} --out $RUN"


def _export(artifact: Artifact) -> Iterator[str]:
    options = artifact.facts.get("options", {})
    extra = "".join(
        f" --providers {name}" for name in options.get("providers", ()) if not artifact.on_the_cpu
    )
    if options.get("device", "CPU") != "CPU":
        extra += f" --option device={options['device']}"
    if artifact.adapters:
        extra += " --option adapters=true"
    if artifact.sensitivity:
        extra += f" --max-drop {artifact.sensitivity.max_drop:g}"
    teacher = " --teacher" if artifact.engine == TEACHER else ""
    engine = f"--target {artifact.target} --precision {artifact.precision}"
    yield f"lorkd export $RUN {engine}{extra}{teacher}"


def _benchmark(profile: Profile) -> str:
    how = profile.protocol
    return (
        f"lorkd benchmark $RUN --rounds {how.rounds} --seconds {how.seconds:g} --iterations "
        f"{how.iterations} --threads {how.threads} --repeats {how.repeats} --largest-batch "
        f"{how.largest_batch}"
    )
