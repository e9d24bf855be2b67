"""Files of weights, as training scripts and model hubs leave them: names → tensors.

A file is what its content says, whatever its name ends with. Nothing in it is run.
"""

from __future__ import annotations

import logging
import pickle
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorkd_deploy.errors import ModelError, first_line

log = logging.getLogger(__name__)
_SHOWN = 8  # names in an error
# Where training scripts keep the weights; of several the first counts.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "teacher",
    "student",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
)
_ALONE = "save its state_dict() alone, best as safetensors"
_WITHOUT_ARGUMENTS = (  # as RETFound and others that were trained by MAE's script are published
    "it has the arguments of its training beside them; save the tensors alone: "
    'python -c "import argparse, torch; from safetensors.torch import save_file; '
    "torch.serialization.add_safe_globals([argparse.Namespace]); "
    "save_file(torch.load('FILE', 'cpu')['model'], 'FILE.safetensors')\""
)
_OTHER_FILES = (  # how they begin, what they are, what to do
    (
        b"version https://git-lfs",
        "the file is a Git LFS pointer, not the weights themselves",
        "fetch them: git lfs pull",
    ),
    (
        b"\x89HDF",
        "the file is HDF5, as Keras writes it",
        "load it there, and save a state_dict() of the same network in torch",
    ),
    (b"GGUF", "the file is GGUF, of quantised weights", "take the weights it was made from"),
    (b"\x1f\x8b", "the file is compressed by gzip", "unpack it first"),
    (b"<", "the file is a web page or XML, no weights", "download it anew, logged in if need be"),
)


def read_weights(
    path: Path,
    prefix: Mapping[str, str],
    own: Mapping[str, Tensor],
    pattern: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, dense, on the CPU: safetensors, or a torch file.

    `prefix` replaces the beginnings of names, the longest that fits; then `pattern`, regular
    expressions with what to put in their place, each part that fits, in their order. `own` is the
    state of the network that they are for, as `state_dict(keep_vars=True)` gives it: infinities
    that it has itself (of a mask) are no fault, and a tensor of several names in it is found under
    any.

    Raises `ModelError` for a file that can't be read or is none of weights (saying what it is),
    and for values that are not finite, naming the tensors.
    """
    state = _tensors(_unwrapped(_loaded(path), path), path)
    state = _renamed(state, prefix, pattern or {}, path)
    broken = [
        name
        for name, value in state.items()
        if not is_finite(value) and not (name in own and torch.equal(own[name], value))
    ]
    if broken:
        raise ModelError(
            f"{len(broken)} tensors hold values that are not finite: {some(broken)}",
            where=path,
            fix="take a checkpoint from before the training diverged",
        )
    _name_fully(state, own, path)
    return state


def _name_fully(state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Give each tensor that `own` has under several names all of them: files may have but one."""
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    for alike in names.values():
        given = [name for name in alike if name in state]
        for name in alike if given else ():
            if not torch.equal(state.setdefault(name, state[given[0]]), state[given[0]]):
                raise ModelError(
                    f"{given[0]} and {name} are one tensor in the network, and differ here",
                    where=path,
                    fix="let the network have two of them, or save the checkpoint's as one",
                )


def some(names: list[str]) -> str:
    """The first of `names`, and how many there are beside."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more


def is_finite(value: Tensor) -> bool:
    """Whether no value of it is infinite or NaN in float32."""
    if not value.is_floating_point():
        return True
    return bool(value.to(torch.float32).isfinite().all())  # as it is used


def _loaded(path: Path) -> Any:
    if not path.exists():
        raise ModelError("the checkpoint does not exist", where=path)
    if not path.is_file():
        raise ModelError("the checkpoint is no file", where=path, fix="name a file in it")
    _refuse_other_files(path)
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as stream:  # by its name torch would take it for another kind
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        # torch's own words advise to load it unsafely.
        raise ModelError(
            "the checkpoint holds more than tensors, or is damaged; loading it could run code",
            where=path,
            fix=_WITHOUT_ARGUMENTS if "argparse.Namespace" in str(exc) else _ALONE,
        ) from exc
    except OSError:
        raise
    except Exception as exc:  # each format has its own errors for a damaged file
        raise ModelError(f"the checkpoint can't be read: {first_line(exc)}", where=path) from exc


def _is_safetensors(path: Path) -> bool:
    """By its content: the length of a JSON header, and the header."""
    with path.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    inside = len(start) == 9 and 8 + length <= path.stat().st_size
    return inside and start[8:] == b"{"


def _refuse_other_files(path: Path) -> None:
    """Raise `ModelError` for a file that is known to be something else than a state dict."""
    with path.open("rb") as stream:
        start = stream.read(64)
    what, fix = next(
        ((what, fix) for magic, what, fix in _OTHER_FILES if start.startswith(magic)), ("", "")
    )
    if not start:
        what, fix = "the file is empty", "download or copy it anew"
    elif start.startswith(b"PK\x03\x04"):
        try:
            what, fix = _other_archive(path) if zipfile.is_zipfile(path) else ("", "")
        except Exception as exc:  # zipfile raises nearly everything over a damaged one
            what, fix = f"the checkpoint can't be read: {exc}", "download or copy it anew"
    elif tarfile.is_tarfile(path):
        what = "the file is a tar archive, in which torch kept weights before its version 0.4"
        fix = "save it anew with torch before version 2.6; or unpack the file that is in it"
    if what:
        raise ModelError(what, where=path, fix=fix)


def _other_archive(path: Path) -> tuple[str, str]:
    """What a zip archive is, and what to do, unless it is what torch.save writes."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        again = "torch.save(torch.jit.load('FILE').state_dict(), 'weights.pt')"
        return "the file is a TorchScript program", f"save its weights alone: {again}"
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return "", ""
    return f"the file is a zip archive without weights of torch: {some(names)}", _ALONE


def _unwrapped(loaded: Any, path: Path) -> Mapping[Any, Any]:
    """The mapping that holds the weights, out of those that a training script put around it."""
    while isinstance(loaded, Mapping):
        found = [key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not found:
            return loaded
        if len(found) > 1:
            others = ", ".join(found[1:])
            log.info("%s: the weights in %r are taken, not those in %s", path, found[0], others)
        loaded = loaded[found[0]]
    raise ModelError("the checkpoint is no mapping of names to tensors", where=path, fix=_ALONE)


def _tensors(state: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a mapping, dense; what a training script put beside them is left out."""
    found = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not found:
        parts = [str(k) for k, v in state.items() if isinstance(v, Mapping)]
        raise ModelError(
            "the checkpoint is no mapping of names to tensors; its keys are "
            + some([str(key) for key in state]),
            where=path,
            fix=f"save the one of {some(parts)} that has the weights alone" if parts else _ALONE,
        )
    if quantised := [name for name, value in found.items() if value.is_quantized]:
        raise ModelError(
            f"{len(quantised)} tensors are quantised: {some(quantised)}",
            where=path,
            fix="take the checkpoint in floating point that they were made from",
        )
    return {k: v if v.layout == torch.strided else v.to_dense() for k, v in found.items()}


def _renamed(
    state: Mapping[str, Tensor],
    prefix: Mapping[str, str],
    pattern: Mapping[str, str],
    path: Path,
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    longest_first = sorted(prefix, key=len, reverse=True)
    for key, value in state.items():
        old = next((p for p in longest_first if key.startswith(p)), "")
        new = prefix.get(old, "") + key[len(old) :]
        for part, replacement in pattern.items():
            new = re.sub(part, replacement, new)
        if new in renamed:
            raise ModelError(
                f"the prefixes or patterns give two weights the name {new!r}", where=path
            )
        renamed[new] = value
    return renamed
