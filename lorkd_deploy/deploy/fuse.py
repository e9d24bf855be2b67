"""`lorkd fuse`: the dense weights of one expert, as a file."""

from __future__ import annotations

import json
from pathlib import Path

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import UsageError
from lorkd_deploy.run import open_run
from lorkd_deploy.storage import write_tensors


def fuse(run: str | Path, task: str, out: str | Path) -> Path:
    """Write W0 + ΔW of `task`, norms folded, float32 by the graph's names, to a safetensors file.

    Its metadata `source` names the task and the bundle, in JSON. Raises `UsageError` for an
    unknown task.
    """
    bundle = load_bundle(open_run(run).bundle)
    entry = bundle.task(task)
    path = Path(out)
    if path.is_dir():
        raise UsageError("--out is a folder, a file is needed", where=path)
    source = {"bundle_sha256": bundle.sha256, "task": entry.name}
    # One key: safetensors writes several in an order of its own, and equal weights would differ.
    write_tensors(path, bundle.fuse(entry.name), {"source": json.dumps(source)})
    return path
