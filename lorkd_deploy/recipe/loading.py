"""Recipes from files: found, overridden, checked, and every fault told at once with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lorkd_deploy.data import DataSpec
from lorkd_deploy.errors import RecipeError, unknown_name
from lorkd_deploy.recipe.recipe import Recipe
from lorkd_deploy.recipe.training import AugmentSpec


def shipped_recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(_recipe_files())}


def _recipe_files() -> Iterator[Path]:
    # An installed wheel carries them as package data; in an editable install they lie in the
    # checkout, where importlib.resources doesn't find force-included files.
    packaged = Path(str(resources.files("lorkd_deploy"))) / "recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"
    yield from folder.glob("*.yaml")


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a file; `overrides` are `key.path=value` in YAML.

    Raises `RecipeError` listing every fault with its place, `UsageError` for an unknown name.
    """
    path = _find(recipe)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise RecipeError(f"the recipe is not valid YAML: {exc}", where=path) from exc
    except OSError as exc:
        raise RecipeError(f"the recipe can't be read: {exc.strerror}", where=path) from exc
    if not isinstance(raw, dict):
        raise RecipeError("the recipe is not a mapping of keys to values", where=path)
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, where=path)


def overridden(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """`recipe` with other values; `overrides` and errors are those of `load_recipe`."""
    raw = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, where=recipe.name)


def parse_recipe(raw: Any, *, where: object) -> Recipe:
    """Validate a parsed recipe; raises one `RecipeError` with all faults and their places."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as exc:
        faults = [f"{_place(e['loc'])}: {_message(e)}" for e in _own_faults(exc.errors())]
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"the recipe has {count}:\n    " + "\n    ".join(faults),
            where=where,
            fix="`lorkd recipe show demo` prints a commented recipe",
        ) from exc


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    if path.is_file():
        return path
    raise unknown_name("recipe (nor file)", str(recipe), shipped)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override!r} is not of the form key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML") from exc
    place: Any = raw
    parts = key.split(".")
    for part in parts[:-1]:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise RecipeError(f"--set {override!r}: there is nothing at {part!r}")
    if isinstance(place, list) and parts[-1].isdigit() and int(parts[-1]) < len(place):
        place[int(parts[-1])] = value
    elif isinstance(place, dict):
        place[parts[-1]] = value
    else:
        raise RecipeError(f"--set {override!r}: there is nothing at {parts[-1]!r}")


def _own_faults(errors: Sequence[Any]) -> list[Any]:
    """Without "at least 1 item" for a list whose only item is what has the fault."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(
            len(p) > len(error["loc"]) and p[: len(error["loc"])] == error["loc"] for p in places
        )
    ]


def _place(loc: tuple[int | str, ...]) -> str:
    shown = ""
    for second_last, last, part in zip(("", "", *loc), ("", *loc), loc, strict=False):
        if last == "data" or second_last == "augment":
            continue  # pydantic's name for the chosen kind of data or change, no key of the file
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part}" if shown else part
    return shown or "recipe"


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        if "augment" in error["loc"]:
            return f"needs a `kind`: {_choices(AugmentSpec, 'kind')}"
        return f"needs a `source`: {_choices(DataSpec, 'source')}"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")


def _choices(variants: Any, key: str) -> str:
    """The values that `key` has in the sections of a union, as a list to read."""
    sections = get_args(get_args(variants)[0])
    names = [repr(get_args(section.model_fields[key].annotation)[0]) for section in sections]
    return " or ".join((", ".join(names[:-1]), names[-1]))
