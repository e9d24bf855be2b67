"""`lorkd teacher`"""

from __future__ import annotations

from lorkd_deploy.cli.shared.options import (
    AllowMissing,
    AutoBatch,
    Json,
    NewRun,
    Overrides,
    Quiet,
    RecipeName,
    Resume,
    TensorBoard,
)
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.cli.shared.training import show


def teacher(
    recipe: RecipeName,
    out: NewRun,
    overrides: Overrides = [],
    resume: Resume = False,
    auto_batch: AutoBatch = False,
    allow_missing: AllowMissing = False,
    tensorboard: TensorBoard = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the recipe's multi-task foundation model, or import one.

    \b
    Examples:
      lorkd teacher medmnist-small --out runs/small
      lorkd teacher medmnist-small --out runs/small --resume
      lorkd teacher medmnist --out runs/papers --auto-batch --tensorboard
      lorkd teacher mine.yaml --out runs/mine --set teacher.checkpoint=resnet50.safetensors
    """
    from lorkd_deploy import teacher as train_teacher

    output = Output(as_json=as_json, quiet=quiet)
    result = train_teacher(
        recipe,
        out,
        set=overrides,
        resume=resume,
        auto_batch=auto_batch,
        allow_missing=allow_missing,
        tensorboard=tensorboard,
        progress=output.progress(),
    )
    show(output, result)
    output.text(f"next: lorkd decompose {recipe} --out {out}")
