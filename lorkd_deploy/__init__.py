"""Decompose a medical foundation model into light experts and deploy one engine per department.

Every command of `lorkd` is a function here, with the same name and defaults; so are the types that
they give and take, the errors that they raise, and what an exporter of one's own is written with
(`lorkd_deploy/runtime.py` explains it). Nothing heavy is imported before it is used:
`import lorkd_deploy` needs neither torch nor a runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorkd_deploy._version import __version__

if TYPE_CHECKING:
    from lorkd_deploy.bundle.read import Bundle as Bundle
    from lorkd_deploy.bundle.read import load_bundle as load_bundle
    from lorkd_deploy.clinic.audit import AuditLog as AuditLog
    from lorkd_deploy.clinic.audit import verify_log as verify_log
    from lorkd_deploy.clinic.drift import drift as drift
    from lorkd_deploy.clinic.listen import listen as listen
    from lorkd_deploy.clinic.reports import write_reports as write_reports
    from lorkd_deploy.clinic.signature import check_signature as check_signature
    from lorkd_deploy.clinic.signature import sign as sign
    from lorkd_deploy.datacheck.check import check_data as check_data
    from lorkd_deploy.datacheck.division import split_data as split_data
    from lorkd_deploy.demonstration import demo as demo
    from lorkd_deploy.deploy.artifact import Artifact as Artifact
    from lorkd_deploy.deploy.export import export as export
    from lorkd_deploy.deploy.fuse import fuse as fuse
    from lorkd_deploy.deploy.pack import pack as pack
    from lorkd_deploy.deploy.predict import predict as predict
    from lorkd_deploy.deploy.switchboard import Switchboard as Switchboard
    from lorkd_deploy.deploy.verify import verify as verify
    from lorkd_deploy.diagnosis import doctor as doctor
    from lorkd_deploy.errors import ArtifactError as ArtifactError
    from lorkd_deploy.errors import BundleError as BundleError
    from lorkd_deploy.errors import DataError as DataError
    from lorkd_deploy.errors import GateError as GateError
    from lorkd_deploy.errors import ImageError as ImageError
    from lorkd_deploy.errors import LorkdError as LorkdError
    from lorkd_deploy.errors import ModelError as ModelError
    from lorkd_deploy.errors import RecipeError as RecipeError
    from lorkd_deploy.errors import RuntimeUnavailableError as RuntimeUnavailableError
    from lorkd_deploy.errors import TrainingError as TrainingError
    from lorkd_deploy.errors import UsageError as UsageError
    from lorkd_deploy.experts import add_experts as add_experts
    from lorkd_deploy.experts import hold_absent as hold_absent
    from lorkd_deploy.inspection import inspect as inspect
    from lorkd_deploy.lowrank.delta import delta_weight as delta_weight
    from lorkd_deploy.profiling.benchmark import benchmark as benchmark
    from lorkd_deploy.profiling.compare import compare as compare
    from lorkd_deploy.profiling.mlperf.scenarios import benchmark_scenarios as benchmark_scenarios
    from lorkd_deploy.profiling.profile import Profile as Profile
    from lorkd_deploy.recipe import Recipe as Recipe
    from lorkd_deploy.recipe import load_recipe as load_recipe
    from lorkd_deploy.recipe import shipped_recipes as shipped_recipes
    from lorkd_deploy.reporting.bom import bom as bom
    from lorkd_deploy.reporting.report import report as report
    from lorkd_deploy.runtime import Closing as Closing
    from lorkd_deploy.runtime import EngineFiles as EngineFiles
    from lorkd_deploy.runtime import EngineSpec as EngineSpec
    from lorkd_deploy.runtime import Exporter as Exporter
    from lorkd_deploy.runtime import NoOptions as NoOptions
    from lorkd_deploy.runtime import Probe as Probe
    from lorkd_deploy.runtime import PythonSample as PythonSample
    from lorkd_deploy.runtime import Runner as Runner
    from lorkd_deploy.runtime import RunOptions as RunOptions
    from lorkd_deploy.runtime import parse_options as parse_options
    from lorkd_deploy.training.compress import compress as compress
    from lorkd_deploy.training.decompose import decompose as decompose
    from lorkd_deploy.training.extract import extract as extract
    from lorkd_deploy.training.init import init as init
    from lorkd_deploy.training.teacher import teacher as teacher
    from lorkd_deploy.training.validate import validate as validate

_HOME = {
    "Artifact": "deploy.artifact",
    "ArtifactError": "errors",
    "AuditLog": "clinic.audit",
    "Bundle": "bundle.read",
    "BundleError": "errors",
    "Closing": "runtime",
    "DataError": "errors",
    "EngineFiles": "runtime",
    "EngineSpec": "runtime",
    "Exporter": "runtime",
    "GateError": "errors",
    "ImageError": "errors",
    "LorkdError": "errors",
    "ModelError": "errors",
    "NoOptions": "runtime",
    "Probe": "runtime",
    "Profile": "profiling.profile",
    "PythonSample": "runtime",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "RunOptions": "runtime",
    "Runner": "runtime",
    "RuntimeUnavailableError": "errors",
    "Switchboard": "deploy.switchboard",
    "TrainingError": "errors",
    "UsageError": "errors",
    "add_experts": "experts",
    "benchmark": "profiling.benchmark",
    "benchmark_scenarios": "profiling.mlperf.scenarios",
    "bom": "reporting.bom",
    "check_data": "datacheck.check",
    "check_signature": "clinic.signature",
    "compare": "profiling.compare",
    "compress": "training.compress",
    "decompose": "training.decompose",
    "delta_weight": "lowrank.delta",
    "demo": "demonstration",
    "doctor": "diagnosis",
    "drift": "clinic.drift",
    "export": "deploy.export",
    "extract": "training.extract",
    "fuse": "deploy.fuse",
    "hold_absent": "experts",
    "init": "training.init",
    "inspect": "inspection",
    "listen": "clinic.listen",
    "load_bundle": "bundle.read",
    "load_recipe": "recipe",
    "pack": "deploy.pack",
    "parse_options": "runtime",
    "predict": "deploy.predict",
    "report": "reporting.report",
    "shipped_recipes": "recipe",
    "split_data": "datacheck.division",
    "sign": "clinic.signature",
    "teacher": "training.teacher",
    "validate": "training.validate",
    "verify": "deploy.verify",
    "verify_log": "clinic.audit",
    "write_reports": "clinic.reports",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (the names are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
