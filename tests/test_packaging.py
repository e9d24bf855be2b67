"""What an install has in it, where there is no torch, no network, or an older Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.made_run import TASKS, make_run
from tests.readme import block

ROOT = Path(__file__).parents[1]
HAS_CHECKOUT = (ROOT / "constraints.txt").is_file()
TORCH_HALF = {"experts", "training", "models", "weight_files", "evidence"}
HEAVY = {"torch", "torchvision", "timm", "transformers", "open_clip", "medmnist"}
# What an extra brings: a module over one that isn't installed may fail to import, for that reason.
RUNTIMES = {"jinja2", "nncf", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
RUNTIMES |= {"mlserver", "triton_python_backend_utils"}
RUNTIMES |= {"fhir", "gdcm", "highdicom", "model_signing", "cyclonedx", "pydicom", "pynetdicom"}
VENV_310 = ROOT / ".venv-3.10"
FEWEST_TESTS = (
    800  # not slow, without torch; guards against an environment that collects next to nothing
)

# Imports every module but those of the half with torch, then says what came along. Not by
# pkgutil.walk_packages: that imports every package on its way.
IMPORT_ALL = f"""
import importlib, json, pathlib, sys
import lorkd_deploy, lorkd_exporters

names = []
for package in (lorkd_deploy, lorkd_exporters):
    folder = pathlib.Path(package.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder.parent).with_suffix("").parts
        if not {TORCH_HALF!r} & set(parts) and parts[-1] != "__main__":
            names.append(".".join(parts).removesuffix(".__init__"))
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name.partition(".")[0] not in {RUNTIMES!r}:
            raise
print(json.dumps({{"names": names, "heavy": sorted({HEAVY!r} & set(sys.modules))}}))
"""

pytestmark = pytest.mark.skipif(
    not HAS_CHECKOUT, reason="packaging is tested from a checkout, and this is an installed copy"
)


def python(
    executable: str | Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python outside the checkout's own environment; the output is shown where it fails."""
    done = subprocess.run(
        [str(executable), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def test_the_half_without_torch_imports_no_torch() -> None:
    said = json.loads(python(sys.executable, "-c", IMPORT_ALL).stdout)
    assert {"lorkd_deploy.cli.app", "lorkd_deploy.bundle.read", "lorkd_deploy.recipe"} <= set(
        said["names"]
    )
    assert said["heavy"] == []


def test_every_public_name_has_a_home() -> None:
    code = (
        "import lorkd_deploy, importlib.util as u\n"
        "for name, home in lorkd_deploy._HOME.items():\n"
        "    assert u.find_spec('lorkd_deploy.' + home), (name, home)\n"
        "    assert name in lorkd_deploy.__all__\n"
        "    if not home.startswith('training') and name not in ('add_experts', 'hold_absent'):\n"
        "        assert getattr(lorkd_deploy, name).__doc__, name\n"
        "    assert not u.find_spec('lorkd_deploy.' + name), name\n"
    )
    python(sys.executable, "-c", code)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what the package is built from."""
    copy = tmp_path_factory.mktemp("clone") / "lorkd-deploy"
    copy.mkdir()
    for name in ("lorkd_deploy", "exporters", "recipes"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def test_the_wheel_has_both_packages_the_recipes_and_the_licence(checkout: Path) -> None:
    build = ["-m", "pip", "wheel", str(checkout), "--no-deps", "--no-build-isolation"]
    python(sys.executable, *build, "--wheel-dir", str(checkout / "dist"))
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        headers = content.read(metadata).decode()
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        assert "lorkd = lorkd_deploy.cli:main" in content.read(scripts).decode()
    expected = {f"lorkd_deploy/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    templates = (ROOT / "lorkd_deploy").rglob("templates/**/*.*")
    expected |= {path.relative_to(ROOT).as_posix() for path in templates if path.is_file()}
    expected |= {
        "lorkd_deploy/deploy/programs/templates/cpp/CMakeLists.txt.in",
        "lorkd_deploy/__init__.py",
        "lorkd_deploy/py.typed",
        "lorkd_exporters/__init__.py",
        "lorkd_exporters/py.typed",
    }
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "lorkd_deploy",
        "lorkd_exporters",
    }
    base = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra)", headers, re.MULTILINE)
    assert not {"torch", "torchvision", "onnxruntime"} & set(base)
    assert {"numpy", "onnx", "safetensors", "typer"} <= set(base)


def test_the_constraints_name_no_host_and_pin_everything() -> None:
    files = [ROOT / "constraints.txt", ROOT / "constraints-serve.txt"]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    pins = [line for line in lines if not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (>=|<) "3\.11")?', line), line
    pinned = {line.split("==")[0] for line in pins}
    wanted = re.findall(r'"([A-Za-z][\w-]*)[\[>]', (ROOT / "pyproject.toml").read_text("utf-8"))
    direct = {name.lower() for name in wanted} - {"lorkd-deploy", "tensorrt"}
    assert direct <= pinned


@pytest.mark.slow
def test_an_air_gapped_install_as_the_readme_says(checkout: Path) -> None:
    """Fills a wheelhouse, installs from nothing else, and works there without torch."""
    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9/",
        "PIP_EXTRA_INDEX_URL": "",
    }
    lazy = {
        "PIP_COMPILE": "0",  # a module is compiled when it is imported, most never are
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    for comment, environment in (("wheelhouse", lazy), ("air-gapped", {**offline, **lazy})):
        for line in block("bash", comment):
            done = subprocess.run(
                ["bash", "-c", line],
                cwd=checkout,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-4000:]
    installed = checkout / "lorkd-env" / "bin" / "python"
    said = json.loads(python(installed, "-c", IMPORT_ALL).stdout)
    assert said["heavy"] == []
    absent = "import importlib.util as u; print(u.find_spec('torch'))"
    assert python(installed, "-c", absent).stdout.strip() == "None"

    (checkout / "data").mkdir()
    bundle = make_run(checkout / "run", checkout / "data") / "bundle"
    lorkd = [str(checkout / "lorkd-env" / "bin" / "lorkd")]
    shown = subprocess.run(
        [*lorkd, "export", str(bundle), "--json"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert {artifact["engine"] for artifact in json.loads(shown.stdout)} == set(TASKS)
    checked = subprocess.run(
        [*lorkd, "verify", str(bundle), "--json"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def old_python() -> Path | None:
    """A Python 3.10 that starts: on PATH, or among pyenv's."""
    found = [shutil.which("python3.10"), *Path.home().glob(".pyenv/versions/3.10*/bin/python")]
    for candidate in found:
        if candidate is None:
            continue
        asked = [str(candidate), "-c", "import sys, venv; print(*sys.version_info[:2])"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        if said.stdout.strip() == "3 10":
            return Path(candidate)
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="this is Python 3.10 already")
def test_the_half_without_torch_passes_under_python_310() -> None:
    """JetPack 6 has Python 3.10. What is `slow` mostly waits for measurements, which no Python
    changes; `tests/cli` has each of those commands. The environment stays in .venv-3.10.
    """
    old = old_python()
    if old is None:
        pytest.skip("no Python 3.10 was found on PATH or among pyenv's versions")
    sources = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    stamp, wanted = VENV_310 / ".installed", hashlib.sha256(sources).hexdigest()
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        python(old, "-m", "venv", str(VENV_310))
        install = ["-m", "pip", "install", "--no-compile"]
        install += ["--constraint", str(ROOT / "constraints.txt")]
        extras = f"{ROOT}[onnx,report,dicom,sign,dev]"
        python(VENV_310 / "bin" / "python", *install, "--editable", extras)
        stamp.write_text(wanted, encoding="utf-8")
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-m",
             "not slow", str(ROOT / "tests")]  # fmt: skip
    # What it imports is compiled once for all its processes, and not into the checkout.
    compiled = {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(VENV_310 / "pycache"),
    }
    done = python(VENV_310 / "bin" / "python", *suite, environment=compiled)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed.group(1)) >= FEWEST_TESTS
