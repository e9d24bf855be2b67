"""`lorkd recipe list`, `show` and `validate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lorkd_deploy.cli.shared.options import AllowMissing, Json, Overrides, Quiet
from lorkd_deploy.cli.shared.render import Output

app = typer.Typer(
    help="Read and check recipes, which say what a run does.\n\nExamples: `lorkd recipe list`, "
    "`lorkd recipe show demo`, `lorkd recipe validate mine.yaml`.",
    rich_markup_mode=None,
)


@app.command("list")
def list_recipes(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the recipes that come with the package.

    \b
    Examples:
      lorkd recipe list
      lorkd recipe list --json
    """
    from lorkd_deploy.recipe import load_recipe, shipped_recipes

    output = Output(as_json=as_json, quiet=quiet)
    recipes = {name: load_recipe(path) for name, path in shipped_recipes().items()}
    output.table(
        "Shipped recipes",
        ("name", "departments", "tasks", "what it does"),
        [(n, len(r.departments), len(r.tasks), r.description) for n, r in recipes.items()],
    )
    output.result(
        [
            {
                "name": name,
                "description": recipe.description,
                "departments": [department.name for department in recipe.departments],
                "tasks": [task.name for task in recipe.tasks],
            }
            for name, recipe in recipes.items()
        ]
    )


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A shipped recipe's name.", show_default=False)
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print a shipped recipe with its comments, as a start for your own.

    \b
    Examples:
      lorkd recipe show demo
      lorkd recipe show medmnist-small > mine.yaml
    """
    from lorkd_deploy.errors import unknown_name
    from lorkd_deploy.recipe import load_recipe, shipped_recipes

    output = Output(as_json=as_json, quiet=quiet)
    shipped = shipped_recipes()
    if name not in shipped:
        raise unknown_name("recipe", name, shipped)
    output.text(shipped[name].read_text(encoding="utf-8").rstrip("\n"))
    output.result(load_recipe(name))


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file.", show_default=False)],
    overrides: Overrides = [],
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Look at its images too, as `lorkd data check` does; build student and teacher, "
            "load their checkpoints and try their export, as training would. Needs torch, takes up "
            "to a minute beside the images.",
        ),
    ] = False,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a recipe and list all its faults at once, each with where it is.

    \b
    Examples:
      lorkd recipe validate mine.yaml
      lorkd recipe validate mine.yaml --deep
      lorkd recipe validate mine.yaml --set train.epochs=3
    """
    from lorkd_deploy.recipe import load_recipe

    output = Output(as_json=as_json, quiet=quiet)
    recipe = load_recipe(file, overrides)
    output.text(
        f"{file} is valid: {recipe.name}, {len(recipe.departments)} departments, "
        f"{len(recipe.tasks)} tasks"
    )
    valid: dict[str, Any] = {"valid": True, "name": recipe.name, "sha256": recipe.sha256}
    if deep:
        from lorkd_deploy.datacheck.check import check_data
        from lorkd_deploy.training.validate import validate as validated

        found = check_data(recipe, progress=output.progress())
        for task in found.tasks:
            for finding in task.findings:
                output.text(f"{task.task}: {finding.level}: {finding.says}")
        networks = validated(
            file, set=overrides, allow_missing=allow_missing, progress=output.progress()
        )
        output.text("its networks can be trained and exported")
        valid |= {"data": found.without_pairs().model_dump(mode="json")}
        valid |= networks.model_dump(mode="json")
    output.result(valid)
