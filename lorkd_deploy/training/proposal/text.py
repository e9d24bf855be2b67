"""A proposed recipe as YAML, with comments that say what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from lorkd_deploy.training.proposal.pace import Networks, Plan


@dataclass(frozen=True)
class Owned:
    """A task, whose it is, where its images are, and what was counted: for a comment."""

    department: str
    task: str
    data: Mapping[str, Any]
    counted: str


def recipe_text(name: str, owned: Sequence[Owned], chosen: Networks, plan: Plan) -> str:
    """The recipe; tasks of one department stand together, in the order in which it came."""
    departments = dict.fromkeys(one.department for one in owned)
    lines = [
        "# By `lorkd init`, for the images below and the machine that it ran on. Every key is",
        "# explained by `lorkd recipe show medmnist-small`; check a change by",
        "# `lorkd recipe validate THIS-FILE`.",
        f"name: {name}",
        "",
        "# A department owns tasks and gets an engine for each; a task is one label set.",
        "departments:",
    ]
    for department in departments:
        lines += [f"  - name: {department}", "    tasks:"]
        for one in owned:
            if one.department == department:
                lines += [f"      - name: {one.task} # {one.counted}", "        data:"]
                section = yaml.safe_dump(dict(one.data), sort_keys=False, allow_unicode=True)
                lines += [f"          {line}" for line in section.splitlines()]
    lines += [
        "",
        "# The network's input, px: larger ones cost in proportion to their area.",
        "preprocess:",
        f"  size: {plan.size}",
        "  mean: [0.5, 0.5, 0.5]",
        "  std: [0.5, 0.5, 0.5]",
        "",
        "# The foundation model, trained here on all tasks together. If you have one, name its",
        "# `architecture` and `checkpoint: FILE`, and `fit: heads` in place of `train`.",
        "teacher:",
        f"  architecture: {chosen.teacher}",
        f"  train: {{epochs: {plan.teacher_epochs}, batch_size: {plan.batch}, lr: 0.001}}",
        "",
        "# The light network that becomes W0, and what every engine costs.",
        "student:",
        f"  architecture: {chosen.student}",
        "",
        "train:",
        f"  epochs: {plan.epochs}",
        f"  batch_size: {plan.batch}",
        f"  validate_every: {max(1, plan.epochs // 4)}",
        "",
    ]
    return "\n".join(lines)
