"""A third party's target, as small as one can be: found by its entry point, run by real workers.

Its engines are ONNX models behind six bytes of its own, run by ONNX's reference implementation, or
a JSON file by which a test says how the engine is to behave.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RUNTIME = '''
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from lorkd_deploy import (
    ArtifactError, Closing, EngineFiles, NoOptions, Probe, PythonSample, parse_options
)

MAGIC = b"trial\\n"
PYTHON_SAMPLE = PythonSample(
    "import onnx.reference",
    "lorkd-trial",
    """
def infer(batch):
    model = onnx.load_from_string(ENGINE.read_bytes()[6:])
    return onnx.reference.ReferenceEvaluator(model).run(None, {"input": batch})[0]
""",
)

def probe():
    return Probe(True, True, "1.0", ("fp32",))

def export(onnx_path, folder, spec):
    parse_options("trial", NoOptions, spec.options)
    (folder / "engine.trial").write_bytes(MAGIC + onnx_path.read_bytes())
    return EngineFiles(("engine.trial",))

def open(folder, files, options):
    content = (folder / files[0]).read_bytes()
    if content.startswith(MAGIC):
        return Exported(content[len(MAGIC) :], options)
    return Runner(json.loads(content), options)

class Exported(Closing):
    def __init__(self, model, options):
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.model = ReferenceEvaluator(onnx.load_from_string(model))
        self.facts = {"runtime": "trial", "version": "1.0", "precision": "fp32"}
        self.facts["threads"] = options.threads

    def __call__(self, batch):
        return self.model.run(None, {self.model.input_names[0]: batch})[0]

    def close(self):
        pass

class Runner(Closing):
    opened = 0

    def __init__(self, engine, options):
        Runner.opened += 1
        if engine.get("alone") and Runner.opened > 1:
            raise MemoryError("no room beside another engine")
        if engine.get("refuse"):
            raise ArtifactError("the engine is of another machine", fix="export it here")
        self.engine, self.calls = engine, 0
        self.facts = {"runtime": "trial 1.0", "precision": "fp32", "threads": options.threads}
        self.ballast = np.ones(engine.get("mib", 0) << 17)
        if mib := engine.get("allocated"):  # an image of the largest batch so far
            self.largest = 0
            self.allocated = lambda: (mib << 20) * self.largest

    def __call__(self, batch):
        self.calls += 1
        if self.engine.get("allocated"):
            self.largest = max(self.largest, len(batch))
        print("runtimes print what they like", flush=True)
        os.write(1, b"also below Python\\n")
        if self.engine.get("dies_at") == self.calls:
            print("out of registers", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.engine.get("raises_at") == self.calls:
            raise ValueError("batch too large")
        if len(batch) > self.engine.get("most", len(batch)):
            raise MemoryError("no room for so many images")
        if counter := self.engine.get("counter"):  # of microjoules: an image takes one joule
            spent = int(Path(counter).read_text()) + 1_000_000 * len(batch)
            Path(counter).write_text(f"{spent}\\n")
        time.sleep(self.engine.get("sleep", 0))
        if (side := self.engine.get("side")) and batch.shape[1:] != (3, side, side):
            raise ValueError(f"an image of {batch.shape[1:]}")
        assert "torch" not in sys.modules
        return batch.mean(axis=(2, 3)) @ np.asarray(self.engine["weight"], np.float32)

    def close(self):
        pass
'''
WEIGHT = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]  # (3, K = 2)


def install_target(site: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Install an exporter package below `site` for every process that is started from now on."""
    info = site / f"lorkd_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"lorkd_{name}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lorkd-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lorkd_deploy.exporters]\n{name} = lorkd_{name}\n")
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *([others] if others else [])]))
