"""`lorkd data check`: planted leaks are found, clean splits are silent, and the rest is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import check_data, load_recipe
from lorkd_deploy.cli import main
from lorkd_deploy.data import Split
from lorkd_deploy.data.files import ImageFiles, Paths
from lorkd_deploy.datacheck import twins as twins_module
from lorkd_deploy.datacheck.common import Common
from lorkd_deploy.datacheck.pictures import look
from lorkd_deploy.datacheck.result import DataCheck, keep_check, read_check
from lorkd_deploy.datacheck.twins import clusters, exact, exact_within, near
from lorkd_deploy.errors import RecipeError
from lorkd_deploy.image_files import KINDS as KINDS_OF_FILES
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Silent
from tests.datacheck.planted import KINDS, copied, pictures

SEEN = Preprocess(size=64)
SIZES = {"train": 120, "val": 40, "test": 60}


def seen_of(images: list[np.ndarray]):  # type: ignore[no-untyped-def]
    return look(Split(images, np.zeros(len(images), np.int64)), SEEN, Silent())


def test_copies_are_found_and_nothing_else() -> None:
    originals = pictures(100, seed=1)
    train = seen_of(originals)
    common = Common(train)
    assert len(near(seen_of(pictures(100, seed=2)), train, common, Silent())) == 0
    for kind in KINDS:
        copies = seen_of([copied(image, kind) for image in originals])
        same, nearly = exact(copies, train), near(copies, train, common, Silent())
        pairs, others = (same, nearly) if kind == "exact" else (nearly, same)
        assert pairs.first.tolist() == pairs.second.tolist() == list(range(100)), kind
        assert pairs.mirrored.all() == pairs.mirrored.any() == (kind == "mirrored")
        assert len(others) == 0
    itself = near(train, train, common, Silent())
    assert len(itself) == 0


def test_what_fine_detail_loses_is_found_by_shades_and_only_then() -> None:
    """Below the limit a pair has to be alike from afar and in its shades too."""
    textures = [image / 4 + 70 for image in pictures(30, seed=5)]
    slope = np.linspace(-70, 70, 96)
    grain = np.random.default_rng(0).normal(0, 1, (96, 96))

    def thumbs(images: list[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
        return seen_of([np.clip(image, 12, 240).astype(np.uint8) for image in images]).thumbs

    common = Common(seen_of([(image + slope).astype(np.uint8) for image in textures]))
    other = thumbs([image + slope for image in textures])
    for shade, noise, wanted in ((1.0, 10, True), (0.6, 7, False)):
        one = thumbs([image + shade * slope + noise * grain for image in textures])
        afar = (common.coarse(one) * common.coarse(other)).sum(axis=1)
        likeness, twins = common.compared(one, other, afar)
        doubtful = (likeness < 0.9) & (likeness >= 0.84) & (afar >= 0.9)
        assert doubtful.sum() > 10 and (twins[doubtful] == wanted).all()
        _, twins = common.compared(one, other, np.zeros(30, np.float32))
        assert not twins[doubtful].any()


def test_where_all_look_alike_few_pairs_of_each_are_compared_and_all_are_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(twins_module, "MOST", 3)
    monkeypatch.setattr(twins_module, "ROWS", 16)
    monkeypatch.setattr(twins_module, "COLUMNS", 16)
    (image,) = pictures(1, seed=6)
    rng = np.random.default_rng(0)
    copies = [image + rng.integers(0, 2, image.shape, np.uint8) for _ in range(40)]
    others = pictures(20, seed=7)
    seen = seen_of([*copies, copies[0], *others])
    pairs = near(seen, seen, Common(seen_of(others)), Silent())
    assert np.bincount(pairs.first).max() <= 3 and (pairs.first < pairs.second).all()
    same = exact_within(seen)
    links = [(pairs.first, pairs.second), (same.first, same.second)]
    found = clusters(len(seen), iter(links))
    assert (found[:41] == found[0]).all() and len(np.unique(found)) == 21


def test_clusters_join_what_is_linked() -> None:
    links = [(np.array([0, 3]), np.array([1, 4])), (np.array([1]), np.array([4]))]
    assert clusters(6, iter(links)).tolist() == [0, 0, 2, 0, 0, 5]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two classes of textures; patient n has images 2n and 2n + 1; recipe.yaml and scans.csv."""
    rows = ["path,label,split,patient,site"]
    for number, (split, count) in enumerate(SIZES.items()):
        for n, image in enumerate(pictures(count, seed=10 + number)):
            name = f"{split}{n}.png"
            Image.fromarray(image).save(tmp_path / name)
            rows.append(f"{name},{'ab'[n % 2]},{split},{split}-{n // 2},{['east', 'west'][n % 2]}")
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    text = f"""
name: scans
data_folder: {tmp_path}
preprocess: {{size: 64}}
departments:
  - name: lungs
    tasks:
      - name: scan
        data: {{source: csv, path: scans.csv, group: patient}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


def kinds(check: DataCheck) -> dict[str, int]:
    return {finding.kind: finding.count for task in check.tasks for finding in task.findings}


def test_a_clean_set_has_no_leak(recipe: Path) -> None:
    check = check_data(recipe)
    assert check.leaks == () and kinds(check) == {}
    sizes = {split.name: (split.images, split.groups) for split in check.tasks[0].splits}
    assert sizes == {"train": (120, 60), "val": (40, 20), "test": (60, 30)}
    assert check.tasks[0].splits[2].standard_error == pytest.approx(7.3, abs=0.01)


@pytest.mark.thorough
def test_everything_that_is_wrong_is_said(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recipe.parent
    pixels = np.asarray(Image.open(folder / "train3.png"))
    Image.fromarray(pixels).save(folder / "test0.png", compress_level=1)  # other bytes, other label
    for n, kind in enumerate(KINDS[1:], 1):
        source = np.asarray(Image.open(folder / f"train{n + 10}.png"))
        Image.fromarray(copied(source, kind)).save(folder / f"test{n}.png")
    Image.new("L", (96, 96), 7).save(folder / "train0.png")
    board = (np.indices((96, 96)).sum(axis=0) // 24 % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(folder / "test40.png")
    text = (folder / "scans.csv").read_text()
    text = text.replace("test30.png,a,test,test-15", "test30.png,a,test,train-3")
    for n in range(1, 37, 2):
        text = text.replace(f"val{n}.png,b,", f"val{n}.png,a,")
    (folder / "scans.csv").write_text(text)
    page = tmp_path / "page.html"
    command = ["data", "check", str(recipe), "--out", str(page), "--json", "--quiet"]
    attribute = ["--set", "departments.0.tasks.0.data.attributes=[site]"]
    assert main([*command, *attribute, "--strict"]) == 3
    check = DataCheck.model_validate_json(capsys.readouterr().out)
    assert check.leaks == ("scan",)
    found = kinds(check)
    assert found["exact duplicates"] == 1 and found["near duplicates"] == 4
    assert found["patients in two splits"] == 1 and found["labels that disagree"] >= 1
    assert found["few images"] == 1 and found["images of one value"] == 1
    assert found["unlike any training image"] in (
        1,
        2,
    )  # the chequered one; perhaps the bright copy
    assert "shortcut: site" in found and "shortcut: size" not in found
    pairs = check.tasks[0].pairs
    assert pairs[0].exact and pairs[0].names == ("test0.png", "train3.png")
    assert {(p.names[0], p.names[1]) for p in pairs[1:]} == {
        (f"test{n}.png", f"train{n + 10}.png") for n in range(1, 5)
    }
    html = page.read_text()
    assert html.count('<img src="data:image/png') == 2 * len(pairs) and "1 of 1 tasks leak" in html
    assert main([*command, *attribute]) == 0
    json.loads(capsys.readouterr().out)


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path: Path) -> None:
    for n, image in enumerate(pictures(6, seed=8)):
        Image.fromarray(image).save(tmp_path / f"{n}.png", ["PNG", "JPEG", "BMP"][n % 3])
    np.save(tmp_path / "6.npy", image)
    paths = Paths.of(tmp_path, [f"{n}.png" for n in range(6)] + ["6.npy"])
    seen = look(Split(ImageFiles(paths), np.zeros(7, np.int64)), SEEN, Silent())
    kinds_seen = [KINDS_OF_FILES[int(number)] for number in seen.family("format")[:, 0]]
    assert kinds_seen == ["PNG", "JPEG", "BMP"] * 2 + ["NumPy"]


def test_near_twins_within_a_split_are_noted(recipe: Path) -> None:
    folder = recipe.parent
    for place, kind in ((40, "mirrored"), (9, "brighter")):  # of another patient, and of the same
        source = np.asarray(Image.open(folder / "train8.png"))
        Image.fromarray(copied(source, kind)).save(folder / f"train{place}.png")
    (task,) = check_data(recipe).tasks
    (finding,) = [f for f in task.findings if f.kind == "near duplicates within a split"]
    assert finding.level == "note" and finding.count == 3
    assert finding.says.endswith("(3 pairs, 2 of two patients)") and not task.leaks


def test_a_run_carries_the_findings_without_names(recipe: Path, tmp_path: Path) -> None:
    check = check_data(recipe)
    assert read_check(tmp_path) is None
    keep_check(check, tmp_path)
    kept = read_check(tmp_path)
    assert kept is not None and kept.tasks[0].pairs == () and kept.created == check.created


def test_patients_by_a_pattern_of_the_file_names(recipe: Path) -> None:
    text = recipe.read_text().replace(", group: patient", "")
    recipe.write_text(
        text.replace("- name: scan", r"- name: scan" "\n        group_pattern: '(\\d)\\.png'")
    )
    check = check_data(recipe)
    assert kinds(check)["patients in two splits"] == 10
    with pytest.raises(RecipeError, match="one pair of brackets"):
        load_recipe(recipe, [r"departments.0.tasks.0.group_pattern='\d'"])
    with pytest.raises(RecipeError, match="is not found in 'train0"):
        check_data(recipe, set=["departments.0.tasks.0.group_pattern='patient(.)'"])
