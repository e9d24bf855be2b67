"""What a study trains: every method, with the recipe changed where that is asked, at every seed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.evidence.methods.table import METHODS, Method, method_named, recipes_of
from lorkd_deploy.recipe import Recipe, overridden
from lorkd_deploy.schema import Part

# In this order: where a key without a section is looked for.
_SECTIONS = ("experts", "transfer", "train", "student", "preprocess")
_NAMES = "|".join(sorted(METHODS, key=len, reverse=True))
_BETWEEN = re.compile(rf",\s*(?=(?:{_NAMES})(?:[+,]|$))")  # values of YAML hold commas too
_CHANGE = re.compile(r"\+(?=[\w.]+=)")


@dataclass(frozen=True)
class Variant:
    """A method with values of the recipe changed: `experts+rank=4`, or none changed."""

    name: str
    method: Method
    overrides: tuple[str, ...] = ()


class Training(Part):
    """One training: of a variant at a seed, of all tasks or of `task` alone, by its own recipe."""

    variant: str
    method: str
    seed: int
    task: str | None
    recipe: dict[str, Any]

    @property
    def folder(self) -> str:
        """Where it lies in the study, `VARIANT/seed-0/TASK`."""
        variant = re.sub(r"[^a-z0-9_.-]+", "_", self.variant.lower()).strip("_")
        return "/".join([variant, f"seed-{self.seed}", *([self.task] if self.task else [])])


def parse_variants(text: str) -> tuple[Variant, ...]:
    """`mtl,experts,experts+rank=4+tau=3` → variants; a value is YAML, as that of `--set`.

    A key is a path in the recipe, or the name of a key in one of its sections on networks,
    transfer and training. Raises `UsageError` for an unknown method or key, and for a variant that
    is named twice.
    """
    variants = tuple(_variant(part.strip()) for part in _BETWEEN.split(text) if part.strip())
    names = [variant.name for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not variants:
        raise UsageError(
            f"a method is named twice: {', '.join(twice)}" if twice else "no method is named",
            fix=f"name some of {', '.join(METHODS)}, each as it is or with changes: experts+rank=4",
        )
    return variants


def _variant(text: str) -> Variant:
    name, *changes = _CHANGE.split(text)
    return Variant(text, method_named(name), tuple(_with_section(change) for change in changes))


def _with_section(change: str) -> str:
    key = change.partition("=")[0]
    if "." in key or key in Recipe.model_fields:
        return change
    fields = {
        section: getattr(Recipe.model_fields[section].annotation, "model_fields", {})
        for section in _SECTIONS
    }
    found = [section for section, keys in fields.items() if key in keys]
    if not found:
        raise unknown_name("key", key, {name for keys in fields.values() for name in keys})
    if len(found) > 1:
        raise UsageError(
            f"the key {key!r} is in several sections of a recipe",
            fix="write " + " or ".join(f"{section}.{key}" for section in found),
        )
    return f"{found[0]}.{change}"


def trainings(
    recipe: Recipe, variants: Sequence[Variant], seeds: int, images: Sequence[int]
) -> Iterator[Training]:
    """Every training of a study, seed by seed, so that a stopped one has whole seeds to compare.

    `images` are the training images of each task. The foundation model is no training of these:
    there is one for all seeds.
    """
    for seed in range(recipe.seed, recipe.seed + seeds):
        for variant in variants:
            if variant.method.network == "teacher":
                continue
            changed = overridden(recipe, (*variant.overrides, f"seed={seed}"))
            for own in recipes_of(variant.method, changed, images):
                yield Training(
                    variant=variant.name,
                    method=variant.method.name,
                    seed=seed,
                    task=own.tasks[0].name if variant.method.per_task else None,
                    recipe=own.model_dump(mode="json"),
                )
