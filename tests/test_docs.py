"""The reference pages that are made from the code, and the site's links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

import lorkd_deploy
from docs import picture
from docs.generated import commands_page, recipes_page
from docs.links import site_link, site_text
from lorkd_deploy.recipe import Recipe
from tests.command_line import commands, examples, parse
from tests.readme import DOCS


@pytest.mark.thorough
def test_every_command_is_in_the_reference() -> None:
    page = commands_page()
    for path, help_text in commands():
        if path.count(" ") and examples(help_text):
            assert f"\n## {path}\n" in page
        for line in examples(help_text):
            assert parse(line.partition(" > ")[0])
    assert "| `--max-drop` `POINTS`" in page
    assert "\b" not in page


def test_every_key_of_a_recipe_is_in_the_reference() -> None:
    page = recipes_page()
    for model in models(Recipe):
        for key in model.model_fields:
            assert f"| `{key}` |" in page, f"{model.__name__}.{key}"
    assert "## departments[].tasks[].data (source: csv)" in page
    assert "| `rank` | `auto` or integer, 1 or more or object | `16` |" in page


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and all that its fields may hold."""
    found, waiting = {model}, [*model.model_fields.values()]
    while waiting:
        annotations = [waiting.pop().annotation]
        while annotations:
            one = annotations.pop()
            annotations += getattr(one, "__args__", ())
            if isinstance(one, type) and issubclass(one, BaseModel) and one not in found:
                found.add(one)
                waiting += one.model_fields.values()
    return found


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: lorkd_deploy\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(lorkd_deploy.__all__) - {"__version__"})
    source = Path(lorkd_deploy.__file__).read_text(encoding="utf-8")
    for name in listed:  # the site reads them there, without running anything
        assert f" import {name} as {name}\n" in source


@pytest.mark.parametrize("theme", picture.THEMES)
def test_the_picture_is_what_its_script_draws(theme: str) -> None:
    written = (DOCS / "assets" / f"overview-{theme}.svg").read_text(encoding="utf-8")
    assert written == picture.picture(theme), "`python docs/picture.py` draws it again"


@pytest.mark.parametrize(
    ("target", "here", "link"),
    [
        ("docs/how-to/run.md", "index.md", "how-to/run.md"),
        ("../../benchmarks/results/a.md", "how-to/run.md", "../results/a.md"),
        ("CONTRIBUTING.md", "index.md", "contributing.md"),
        ("docs/architecture.md", "contributing.md", "architecture.md"),
        ("b.md", "results/a.md", "b.md"),
    ],
)
def test_a_files_link_becomes_the_sites(target: str, here: str, link: str) -> None:
    assert site_link(target, here) == link
    assert site_text(f"[a]({target}#b)", here) == f"[a]({link}#b)"
