"""Layouts whose servers can't be run here, against what the servers' documentation says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import check_files, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.programs import kserve
from lorkd_deploy.deploy.programs.layouts import LAYOUTS, require_own
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.runtime import exporter
from tests.deploy.made_run import TASKS

# The keys of one model in OVMS's configuration, and the types of those that have one: as its
# documentation lists them ("Model parameters"); its own check refuses any other.
OVMS_MODEL = {
    "name": str,
    "base_path": str,
    "batch_size": (int, str),
    "model_version_policy": dict,
    "shape": (dict, str),
    "nireq": int,
    "target_device": str,
    "plugin_config": dict,
    "stateful": bool,
    "custom_loader_options": dict,
}
# What KServe's resource definitions require, by path, and the type of each; `*` is any entry.
KSERVE_SERVICE = {
    ("apiVersion",): str,
    ("kind",): str,
    ("metadata", "name"): str,
    ("spec", "predictor", "model", "modelFormat", "name"): str,
    ("spec", "predictor", "model", "protocolVersion"): str,
    ("spec", "predictor", "model", "runtime"): str,
    ("spec", "predictor", "model", "storageUri"): str,
}
KSERVE_RUNTIME = {
    ("apiVersion",): str,
    ("kind",): str,
    ("metadata", "name"): str,
    ("spec", "supportedModelFormats", "*", "name"): str,
    ("spec", "supportedModelFormats", "*", "version"): str,
    ("spec", "supportedModelFormats", "*", "autoSelect"): bool,
    ("spec", "protocolVersions", "*"): str,
    ("spec", "containers", "*", "name"): str,
    ("spec", "containers", "*", "image"): str,
    ("spec", "containers", "*", "command", "*"): str,
    ("spec", "containers", "*", "ports", "*", "containerPort"): int,
    ("spec", "containers", "*", "ports", "*", "protocol"): str,
    ("spec", "containers", "*", "resources", "requests", "cpu"): str,
    ("spec", "containers", "*", "resources", "requests", "memory"): str,
    ("spec", "containers", "*", "resources", "limits", "cpu"): str,
    ("spec", "containers", "*", "resources", "limits", "memory"): str,
}


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], type]:
    """The type of every value in a document, by path."""
    if isinstance(value, dict):
        return {k: t for key, v in value.items() for k, t in leaves(v, (*path, key)).items()}
    if isinstance(value, list):
        return {k: t for v in value for k, t in leaves(v, (*path, "*")).items()}
    return {path: type(value)}


def test_kserve_is_told_no_name_that_a_service_may_not_have(run: Path) -> None:
    (artifact,) = export(run, task=["eye"])
    model = ServedModel(
        artifact.model_copy(update={"engine": "2d-eye"}), load_bundle(run / "bundle")
    )
    with pytest.raises(ArtifactError, match="begin with a letter"):
        kserve.files(model)


def test_tasks_that_are_one_name_to_kserve_are_refused_before_anything_is_built(run: Path) -> None:
    export(run, layout="kserve", task=["eye"])
    there = run / "kserve"
    with pytest.raises(ArtifactError, match="eye and eye_ would both be called eye there"):
        require_own("kserve", there, [("clinic", "eye_")])
    apart = [("ward", "a_b"), ("clinic", "a-b")]
    with pytest.raises(ArtifactError, match="a-b and a_b would both be called a-b there"):
        require_own("kserve", there, apart)
    with pytest.raises(ArtifactError, match="begin with a letter"):
        require_own("kserve", there, [("ward", "2d")])
    require_own("kserve", there, [("clinic", "eye"), ("ward", "a_b")])
    require_own("mlserver", run / "mlserver", apart)


def test_kserve_has_a_runtime_and_a_service_a_task(run: Path) -> None:
    export(run, layout="kserve", department=["clinic"])
    folder = run / "kserve"
    runtime = yaml.safe_load((folder / "servingruntime.yaml").read_text(encoding="utf-8"))
    assert leaves(runtime) == KSERVE_RUNTIME
    assert (runtime["apiVersion"], runtime["kind"]) == (
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
    )
    for task in ("eye", "findings"):
        model = folder / task
        service = yaml.safe_load((model / "inferenceservice.yaml").read_text(encoding="utf-8"))
        assert leaves(service) == KSERVE_SERVICE
        assert (service["apiVersion"], service["kind"]) == (
            "serving.kserve.io/v1beta1",
            "InferenceService",
        )
        wanted = service["spec"]["predictor"]["model"]
        assert wanted["runtime"] == runtime["metadata"]["name"]
        formats = runtime["spec"]["supportedModelFormats"]
        assert wanted["modelFormat"]["name"] in [entry["name"] for entry in formats]
        assert wanted["protocolVersion"] in runtime["spec"]["protocolVersions"]
        # What comes to the storage is a whole folder for MLServer, which `test_servers.py` runs; in
        # a pod it has to listen to the cluster.
        settings = json.loads((model / "settings.json").read_text(encoding="utf-8"))
        assert settings["host"] == "0.0.0.0"
        (container,) = runtime["spec"]["containers"]
        assert settings["http_port"] == container["ports"][0]["containerPort"]
        described = json.loads((model / "model-settings.json").read_text(encoding="utf-8"))
        check_files(read_artifact(model / described["parameters"]["uri"]))


@pytest.mark.skipif(
    not exporter("openvino").probe().can_run, reason="the target's runtime is not installed"
)
def test_ovms_knows_every_model_that_lies_there(run: Path) -> None:
    export(run, "openvino", layout="ovms", task=["eye"])
    export(run, "openvino", layout="ovms", department=["ward"])
    folder = run / "ovms"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert set(config) == {"model_config_list"}
    models = [entry["config"] for entry in config["model_config_list"]]
    assert [set(entry) for entry in config["model_config_list"]] == [{"config"}] * 3
    assert [model["name"] for model in models] == ["eye", "heart", "lung"]
    for model in models:
        assert {"name", "base_path"} <= set(model) <= set(OVMS_MODEL)
        assert all(isinstance(value, OVMS_MODEL[key]) for key, value in model.items())
        assert model["base_path"] == f"/models/{model['name']}"
        assert model["plugin_config"]["INFERENCE_PRECISION_HINT"] == "f32"
        version = folder / model["name"] / "1"
        check_files(read_artifact(version))
        assert (version / "model.xml").is_file() and (version / "model.bin").is_file()
        labels = (version.parent / "labels.txt").read_text(encoding="utf-8").splitlines()
        assert len(labels) == TASKS[model["name"]]
    assert "/models/config.json" in LAYOUTS["ovms"].start


def test_what_ovms_can_not_be_told(run: Path) -> None:
    with pytest.raises(UsageError, match="no backend for onnx engines") as caught:
        export(run, layout="ovms")
    assert "--target openvino" in str(caught.value.fix)
    if "bf16" in exporter("openvino").probe().precisions:
        with pytest.raises(ArtifactError, match="float32 arithmetic on the CPU"):
            export(run, "openvino", precision="bf16", layout="ovms", task=["eye"])
        assert not (run / "ovms" / "eye").exists()


def test_the_settings_of_a_server_stay_as_its_user_has_them(run: Path) -> None:
    export(run, layout="mlserver", task=["eye"])
    file = run / "mlserver" / "settings.json"
    file.write_text('{"http_port": 9}')
    export(run, layout="mlserver", task=["eye"])
    assert file.read_text() == '{"http_port": 9}'


def test_what_runs_here_listens_on_this_machine_alone(run: Path) -> None:
    export(run, layout="mlserver", task=["eye"])
    settings = json.loads((run / "mlserver" / "settings.json").read_text(encoding="utf-8"))
    assert settings["host"] == "127.0.0.1"
    for layout in ("triton", "triton-python"):
        start = LAYOUTS[layout].start
        assert start.count("127.0.0.1") == 3  # REST, gRPC and metrics
    assert LAYOUTS["ovms"].start.count("--publish 127.0.0.1:") == 2
