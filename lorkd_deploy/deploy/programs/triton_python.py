"""A model repository for Triton's Python backend: each engine with its preprocessing.

    REPOSITORY/
      TASK/
        config.pbtxt
        labels.txt      one line per column of the probabilities
        1/              the engine's folder as it was exported, its model step, and model.py

Unlike the layout `triton`, for the backends of the runtimes, it takes images and gives
probabilities, for every target; the server's Python needs lorkd-deploy and the target's runtime.
`tests/deploy/servers/test_servers.py` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from lorkd_deploy._version import __version__
from lorkd_deploy.deploy.answers.model_step import MOST, Tensor, inputs, outputs, step_files
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.deploy.programs.triton import CONFIG, LABELS, VERSION, labels
from lorkd_deploy.runtime import PROBABILITIES

_TYPES = {"UINT8": "TYPE_UINT8", "FP64": "TYPE_FP64", "BYTES": "TYPE_STRING"}


def files(model: ServedModel) -> dict[str, bytes]:
    """What a model needs beside its engine's own files, by path."""
    artifact = model.artifact
    config = fill(
        "triton/python.pbtxt.in",
        NAME=model.name,
        TARGET=artifact.target,
        PRECISION=artifact.precision,
        VERSION=__version__,
        FOLDER=VERSION,
        MOST=MOST,
        INPUTS=_tensors(inputs()),
        OUTPUTS=_tensors(outputs(artifact, guarded=model.guarded)),
    )
    step = step_files(artifact, model.bundle)
    return {
        CONFIG: config.encode(),
        LABELS: labels(artifact).encode(),
        f"{VERSION}/model.py": fill("triton/model.py.in", NAME=model.name).encode(),
        **{f"{VERSION}/{name}": data for name, data in step.items()},
    }


def _tensors(tensors: Iterable[Tensor]) -> str:
    """The entries of `input` or `output`."""
    entries = []
    for tensor in tensors:
        lines = [
            f'name: "{tensor.name}"',
            f"data_type: {_TYPES[tensor.datatype]}",
            f"dims: [ {', '.join(map(str, tensor.shape))} ]",
        ]
        if tensor.name == PROBABILITIES:
            lines.append(f'label_filename: "{LABELS}"')
        entries.append("  {\n" + "".join(f"    {line}\n" for line in lines) + "  }")
    return ",\n".join(entries)
