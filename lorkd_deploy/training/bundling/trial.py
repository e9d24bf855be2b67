"""A network's graph, made before its training: what can't be exported is told before work is lost.

It is the graph that the bundle gets afterwards.
"""

from __future__ import annotations

import logging

from torch import nn

from lorkd_deploy.bundle.size import check_template
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts.probe import probe_images
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.bundling.graph_template import (
    Template,
    constants_sha256,
    explained,
    graph_template,
)
from lorkd_deploy.training.networks.explained import grad_cam

log = logging.getLogger(__name__)
_SHOWN = 8


def tried(
    setup: Setup,
    backbone: nn.Module,
    head: nn.Linear,
    progress: Progress | None = None,
    *,
    guard: bool = False,
    deployed: bool = True,
) -> Template:
    """The template of a network that is to be trained; raises `ModelError` as `graph_template`.

    So does one that is `deployed` and too large for an ONNX file; a teacher may be learnt from.
    """
    with bar(progress, f"exporting the graph of {type(backbone).__name__}", 1) as shown:
        made = _template(setup, backbone, head, guard=guard, deployed=deployed)
        shown.advance()
    try:
        check_template(made.onnx)
    except ModelError as exc:
        if deployed:
            raise
        log.warning("%s; it can be trained and learnt from", exc.what)
    if unused := made.graph.unused:
        more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        log.info(
            "not in the graph, as no answer depends on it or it has another name there: %s%s",
            ", ".join(unused[:_SHOWN]),
            more,
        )
    return made


def still_its_own(
    template: Template,
    setup: Setup,
    backbone: nn.Module,
    head: nn.Linear,
    *,
    guard: bool = False,
    deployed: bool = True,
) -> Template:
    """`template`, or a new one where training has changed what the graph itself holds."""
    if constants_sha256(backbone) == template.constants_sha256:
        return template
    log.info("training has changed buffers that are a part of the graph: it is made again")
    return _template(setup, backbone, head, guard=guard, deployed=deployed)


def _template(
    setup: Setup, backbone: nn.Module, head: nn.Linear, *, guard: bool, deployed: bool
) -> Template:
    """The graph, with maps where the recipe asks for them and the network has any."""
    size, opset = setup.preprocess.size, setup.recipe.export.opset
    made = graph_template(backbone, head, size=size, opset=opset, guard=guard)
    if not setup.recipe.safety.explain:
        return made
    try:
        grad_cam(backbone, head, probe_images(size).to(head.weight.device))
        return explained(made)
    except ModelError as exc:
        if deployed:
            raise
        log.warning("%s; there is none to show beside the experts'", exc.what)
        return made
