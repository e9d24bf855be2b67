"""torch's two exports of a network, and what is said where one of them fails."""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from lorkd_deploy.errors import ModelError, is_out_of_memory

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

INPUT, BATCH = "input", "batch"
log = logging.getLogger(__name__)
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='\w+\.(\w+)'")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FORWARD = "its forward must take any batch size, without Python branches on the data"


def traced(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The operations of `model`, whose tensors keep their names, for a batch of any size.

    A tensor of several names has the first of them. Raises `ModelError` naming the layer and the
    line whose code torch can't follow.
    """
    try:
        with _quiet(), _length_of_a_batch(model):
            program = torch.export.export(
                model, (example,), dynamic_shapes=_free_batch(), strict=False
            )
    except Exception as exc:  # torch raises whatever the network's code meets
        raise _not_traced(model, exc) from exc
    _join_tied(program, model)
    program.graph.eliminate_dead_code()
    return program


def _join_tied(program: ExportedProgram, model: nn.Module) -> None:
    """Let every operation read a tensor by the first of its names."""
    names: dict[int, str] = {}
    first = {
        name: names.setdefault(id(tensor), name)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    nodes = {tensor: node for node, tensor in tensors_of(program).items()}
    for name, node in nodes.items():
        if first.get(name, name) != name:
            node.replace_all_uses_with(nodes[first[name]])


def tensors_of(program: ExportedProgram) -> dict[fx.Node, str]:
    """Which tensor of the network's state a node gives, for those that give one."""
    state = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.target is not None and spec.target in program.state_dict
    }
    return {node: state[node.name] for node in program.graph.nodes if node.name in state}


def exported(program: ExportedProgram, opset: int, outputs: Sequence[str]) -> ONNXProgram:
    """The ONNX program of what `traced` gave, with all its weights, not optimised.

    Raises `ModelError` naming the operator that ONNX has nothing for, and its layer.
    """
    try:
        with _quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                dynamic_shapes=({0: BATCH},),  # its name; that it is free the program says
                external_data=False,
                input_names=[INPUT],
                output_names=outputs,
                opset_version=opset,
                optimize=False,  # `take_weights` does it, when weights can't be taken for constants
                verbose=False,
            )
    except Exception as exc:
        raise _not_exported(program, exc) from exc
    assert made is not None  # it is None for the old exporter only
    return made


def _free_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim(BATCH)},)


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch prints and logs of its own graphs goes to this library's log, for who asks."""
    said = io.StringIO()
    theirs = logging.getLogger("torch")
    handlers, propagate = theirs.handlers, theirs.propagate
    theirs.handlers, theirs.propagate = [logging.StreamHandler(said)], False
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")  # of weights computed in the forward, of deprecations
            yield
    finally:
        theirs.handlers, theirs.propagate = handlers, propagate
        if said.getvalue():
            log.debug("torch's export: %s", said.getvalue())


@contextmanager
def _length_of_a_batch(model: nn.Module) -> Iterator[None]:
    """Let `len(x)` in the code of the network's packages be the batch's size, whatever that is.

    Python's own makes a number of it, that of the example.
    """
    packages = {type(part).__module__.partition(".")[0] for part in model.modules()}
    own = [
        code.__dict__
        for name, code in list(sys.modules.items())
        if name.partition(".")[0] in packages - {"torch", __package__.partition(".")[0]}
        and "len" not in code.__dict__
    ]
    for names in own:
        names["len"] = _batch_length
    try:
        yield
    finally:
        for names in own:
            del names["len"]


def _batch_length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else len(x)


def _not_traced(model: nn.Module, exc: Exception) -> ModelError:
    if is_out_of_memory(exc):
        raise exc
    text = str(exc)
    if "specialized it to be a constant" in text:
        return ModelError(
            "the network can't be exported: its code takes the batch's size for a fixed number",
            where=_layer_and_line(model, exc),
            fix="write x.shape[0] or -1 where a shape is made, without int() or loops over samples",
        )
    if "data-dependent" in text:
        return ModelError(
            "the network can't be exported: its code decides by the values of the data",
            where=_layer_and_line(model, exc),
            fix="replace the Python branch by torch.where, so that all inputs take the same way",
        )
    return ModelError(
        f"torch can't export this network: {_first_line(exc)}",
        where=_layer_and_line(model, exc),
        fix=_FORWARD,
    )


def _not_exported(program: ExportedProgram, exc: Exception) -> ModelError:
    if is_out_of_memory(exc):
        raise exc
    causes: list[BaseException] = [exc]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    operator = next((m[1] for cause in causes if (m := _OPERATOR.search(str(cause)))), None)
    if operator is None:
        return ModelError(
            f"torch can't write this network as ONNX: {_first_line(causes[-1])}", fix=_FORWARD
        )
    return ModelError(
        f"the network can't be exported: ONNX has nothing for torch's {operator}",
        where=_layer_of(program.graph, operator),
        fix="replace that operation by others (an adaptive pooling by one of fixed kernel size) "
        "in the network's code, or choose another architecture",
    )


def _first_line(exc: BaseException) -> str:
    said = _COLOUR.sub("", str(exc)).strip().splitlines()
    return said[0] if said else type(exc).__name__


def _layer_of(graph: fx.Graph, operator: str) -> str | None:
    """The layer whose forward calls an operator, and its class."""
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "").split(".")[0] == (
            operator
        ):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack:
                path, kind = stack[-1][:2]
                kind = kind if isinstance(kind, str) else kind.__name__
                return _described(path, kind.rpartition(".")[2])
    return None


def _layer_and_line(model: nn.Module, exc: BaseException) -> str:
    """The innermost module of the network whose own code was running, and the line in it."""
    names = {id(part): name for name, part in model.named_modules()}
    found = type(model.get_submodule("backbone")).__name__
    for frame, line in traceback.walk_tb(exc.__traceback__):
        part, file = frame.f_locals.get("self"), Path(frame.f_code.co_filename)
        own = isinstance(part, nn.Module) and id(part) in names
        if own and names[id(part)] and not type(part).__module__.startswith("torch.nn"):
            place = _described(names[id(part)], type(part).__name__)
            found = f"{place}, {file.name} line {line}"
    return found


def _described(path: str, kind: str) -> str:
    own = path.removeprefix("backbone").removeprefix(".")
    return f"{own} ({kind})" if own else kind
