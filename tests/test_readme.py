"""Every command of README and docs is run on a tiny run, or parsed where its comment says why."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from lorkd_exporters import trt
from PIL import Image
from pydicom import dcmread

from lorkd_deploy import cli
from lorkd_deploy.cli.shared.options import key_value
from lorkd_deploy.data import open_data
from lorkd_deploy.data.phantom import PhantomData
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.runtime import parse_options
from lorkd_deploy.storage import read_tensors
from lorkd_deploy.training.proposal.pace import Pace
from tests.command_line import parse
from tests.dicom.files import dataset, saved
from tests.readme import DOCS, JETSON, README, ROOT, Block, blocks, every_block, pages

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [*pages(), CONTRIBUTING, ROOT / "SECURITY.md"]
ELSEWHERE = {"wheelhouse", "air-gapped"}  # run by tests/test_packaging.py
LAST = "once there is a run"  # after all others, though it stands before them
SHELL = {"bash", "console", "sh"}
COMMANDS = [b for b in every_block() if b.language in SHELL]
GENERATED = {"commands.md", "recipes.md"}  # by docs/hooks.py
README_LINES = 150

# What makes a training take seconds: small networks, and drawn images for a recipe's own.
DRAWN = [
    *(
        f"departments.{index}.tasks.0.data="
        f"{{source: phantom, name: {name}, train: 16, val: 8, test: 12}}"
        for index, name in enumerate(("cells", "xray", "fundus", "tissue"))
    ),
    "departments.0.tasks.0.finding=null",  # the recipe's is a class of its own images
    "teacher.checkpoint=null",
    "teacher.fit=all",
    "teacher.preprocess=null",
    "teacher.prefix={}",
    "teacher.pattern={}",
]
TINY = [
    "preprocess.size=32",
    "teacher.architecture=tests.tiny_backbone:backbone",
    "student.architecture=tests.tiny_backbone:backbone",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=16",
    "experts.rank=4",
    "train.epochs=1",
    "train.batch_size=16",
    "parity.inputs=4",
    "parity.test_images=4",
    "benchmark.rounds=2",
    "benchmark.seconds=0.05",
    "benchmark.iterations=4",
    "benchmark.warmup=1",
    "benchmark.batch_sizes=[1]",
    "benchmark.repeats=0",
    "benchmark.largest_batch=0",
    "benchmark.uncached=false",
]


TUTORIAL = {"init", "recipe.yaml", "runs/chest", "chest"}  # words of its commands


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_site_has_every_page_and_the_readme_stays_short() -> None:
    assert set(pages()) - {README} == set(DOCS.rglob("*.md"))
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r' src(?:set)?="([^"]+)"', text)
    links = [link.partition("#")[0] for link in found if "://" not in link]
    written = [link for link in links if Path(link).name not in GENERATED]
    assert [link for link in written if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_module_that_a_page_names_is_there(page: Path) -> None:
    """`bundle/read.py` is one of the package, a whole path one of the project."""
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`", page.read_text(encoding="utf-8"))
    paths = [name for name in named if "/" in name and "NAME" not in name]
    places = (ROOT, ROOT / "lorkd_deploy")
    assert [p for p in paths if not any((place / p).is_file() for place in places)] == []


def run_blocks() -> list[Block]:
    return [b for kind in ("", LAST) for b in COMMANDS if b.comment == kind]


def test_there_are_commands_of_every_kind() -> None:
    comments = {b.comment for b in COMMANDS}
    known = {"", "make", LAST, *ELSEWHERE}
    for comment in comments - known:
        assert comment.startswith(("parsed: needs", "shell: needs")), comment
    assert known <= comments
    shown = {
        words[1] for b in COMMANDS for words in map(shlex.split, b.lines) if words[0] == "lorkd"
    }
    assert shown >= {
        "teacher",
        "decompose",
        "fuse",
        "export",
        "verify",
        "benchmark",
        "report",
        "pack",
        "predict",
        "inspect",
        "recipe",
        "doctor",
    }


@pytest.mark.parametrize("line", [line for b in COMMANDS for line in b.lines])
def test_every_lorkd_line_parses(line: str) -> None:
    launcher, _, started = line.partition(" -m lorkd_deploy ")
    if launcher.split()[0] in {"torchrun", "srun", "accelerate"} and started:
        assert parse(f"lorkd {started}")
    elif line.startswith("lorkd "):
        command = line.partition(" > ")[0]
        assert command.startswith(parse(command))
    else:
        words = {"make", "pip", "python", "python3", "lorkd-env/bin/python", "scp", "hf"}
        words |= {"server/bin/python", "server/bin/mlserver", "tritonserver", "curl"}
        assert shlex.split(line)[0] in words


def test_the_page_for_a_jetson() -> None:
    """Nothing of it runs here, so each block says why, and its options are put to the target."""
    page = JETSON.read_text(encoding="utf-8")
    assert "Not run by us on a Jetson" in page
    assert "10.3" in page
    assert trt.OLDEST == (10, 3)
    shown = [b for b in blocks(JETSON) if b.language in SHELL]
    assert all(b.comment.startswith(("parsed: needs", "shell: needs")) for b in shown)
    lines = [line for b in shown for line in b.lines]
    steps = [line.split()[1] for line in lines if line.startswith("lorkd ")]
    order = ["pack", "export", "verify", "benchmark"]
    assert sorted(order, key=steps.index) == order
    given = [
        dict(
            key_value(word)
            for word, flag in zip(words[1:], words, strict=False)
            if flag == "--option"
        )
        for words in map(shlex.split, lines)
    ]
    used = {name for options in given for name in options}
    assert used >= {"max_batch", "workspace", "version_compatible"}
    for options in given:
        parse_options("trt", trt.Options, options)


def test_make_knows_its_targets() -> None:
    (first,) = (b.lines for b in blocks(README) if b.comment == "make")
    assert list(first) == ["make demo", "make test"]
    (shown,) = (b.lines for b in blocks(CONTRIBUTING) if b.comment == "make")
    for line in (*first, *shown, "make docs"):
        done = subprocess.run(
            [*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert ".venv/bin" in done.stdout


def test_the_python_example_runs() -> None:
    y = python_example("")["y"]
    assert isinstance(y, torch.Tensor)
    assert y.shape == (6, 8)


def test_says_that_it_is_no_medical_device() -> None:
    assert "Not a medical device" in README.read_text(encoding="utf-8").split("\n## ")[0]


def python_example(comment: str, **names: object) -> dict[str, object]:
    """The names after the example with this comment was executed among `names`."""
    (example,) = (b for b in every_block() if (b.language, b.comment) == ("python", comment))
    exec(example.body, names)
    return names


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORKD_DATA", os.devnull)
    images = open_data(PhantomData(source="phantom", name="cells", test=8)).test.images
    (tmp_path / "scans").mkdir()
    Image.fromarray(images[0]).save("scan.png")
    for index in range(3):
        Image.fromarray(images[index]).save(f"scans/{index}.png")
    for index, name in enumerate(["benign", "malignant", "normal"] * 10):
        (tmp_path / "ct" / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(pixels).save(f"ct/{name}/{index}.png")
    speed = Pace(teacher=0.0004, student=0.0001)  # without measuring, which has its own test
    monkeypatch.setattr("lorkd_deploy.training.init.measured", lambda *_: speed)
    saved(dataset(np.arange(32 * 32).reshape(32, 32)), tmp_path / "scan.dcm")
    for line in (line for b in run_blocks() for line in b.lines):
        command, _, file = line.partition(" > ")
        words = shlex.split(command)[1:]
        if words[0] in {"teacher", "decompose"}:
            changes = TINY if "recipe.yaml" in words else [*DRAWN, *TINY]
            words += [word for value in changes for word in ("--set", value)]
        capsys.readouterr()
        code = cli.main(words)
        shown = capsys.readouterr()
        assert code == 0, f"{line}\n{shown.err}"
        if file:
            Path(file).write_text(shown.out, encoding="utf-8")
        elif not (words[0] == "recipe" or "--json" in words or TUTORIAL & set(words)):
            check(words[0], tmp_path, shown.out, alone="delivered" in words)
    (sr,) = (tmp_path / "reports").glob("*.dcm")  # the same of both commands, so one file
    assert dcmread(sr).Modality == "SR"
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert (tmp_path / "chest" / "bundle" / "manifest.json").is_file()  # what the tutorial gives
    logits = python_example("python: needs a run", images=images)["logits"]
    assert isinstance(logits, np.ndarray)
    assert len(logits) == 2


def check(command: str, folder: Path, shown: str, *, alone: bool) -> None:
    """What each command leaves behind, as the README says; `alone`: one department's folder."""
    run = folder / "runs" / "small"
    tasks = [task.name for task in load_recipe("medmnist-small").tasks]
    if command in {"teacher", "decompose"}:
        assert all(task in shown for task in tasks)
        kind = "teacher" if command == "teacher" else "bundle"
        manifest = json.loads((run / kind / "manifest.json").read_text(encoding="utf-8"))
        assert [task["name"] for task in manifest["tasks"]] == tasks
    elif command == "export":
        assert len(list(run.glob("export/*/*/onnx-fp32/model.onnx"))) == len(tasks)
        assert (run / "export" / "teacher" / "onnx-fp32" / "model.onnx").is_file()
    elif command == "verify":
        assert shown.count("yes") >= (1 if alone else len(tasks) + 1)
    elif command == "benchmark":
        profile = json.loads((run / "profile" / "profile.json").read_text(encoding="utf-8"))
        assert len(profile["engines"]) == len(tasks) + 1
    elif command == "report":
        assert "medical device" in (run / "report.html").read_text(encoding="utf-8")
        assert (run / "report.md").stat().st_size > 1000
    elif command == "fuse":
        assert "head.weight" in read_tensors(folder / "retina.safetensors")
    elif command == "predict":
        assert "scan.png" in shown or (folder / "breast.csv").is_file()
    else:
        assert shown.strip()
