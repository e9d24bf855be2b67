"""A run's folder: which recipe it belongs to, and where its parts lie.

RUN/
  run.json          the recipe, resolved, and its hash: written first, never changed
  teacher/          the foundation model, in a bundle's form
  bundle/           W0 and the experts
  export/  profile/  report.html  report.md
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorkd_deploy.bundle.manifest import MANIFEST, Manifest
from lorkd_deploy.bundle.read import FRESH_COPY
from lorkd_deploy.datacheck import DATA_CHECK
from lorkd_deploy.errors import BundleError, RecipeError
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import LOCK, exclusive

if TYPE_CHECKING:  # loaded late: a deployed run is opened without
    from lorkd_deploy.recipe import Recipe

SCHEMA = 2  # 2: with a digest of itself
RUN = "run.json"
SIGNATURE = "signature.json"  # over bundle and engines, by `lorkd sign`


class RunRecord(Part):
    """What `run.json` says: the recipe, resolved, and its hash."""

    schema_version: int = SCHEMA
    recipe: dict[str, Any]
    recipe_sha256: str


@dataclass(frozen=True)
class Run:
    """A run's folder `path`, or a bundle that stands alone, whose engines go below itself.

    `recipe_sha256` is the recipe's hash as `run.json` has it, which the run's checkpoints bear,
    whatever keys a recipe has got since; None without a `run.json`.
    """

    path: Path
    bundle: Path
    recipe_sha256: str | None = None

    @property
    def teacher(self) -> Path:
        """The teacher's bundle; it need not exist."""
        return self.path / "teacher"

    @property
    def export(self) -> Path:
        """Where engines go: `DEPARTMENT/TASK/TARGET-PRECISION/` below it."""
        return self.path / "export"

    @property
    def profile(self) -> Path:
        """Where the benchmark's figures go."""
        return self.path / "profile"

    def repository(self, layout: str) -> Path:
        """Where engines go as a server's model repository (`--layout`)."""
        return self.path / layout


def claim(out: str | Path, recipe: Recipe) -> Run:
    """Make `out` the run of `recipe`, or go on in it if it is that already.

    Raises `BundleError` where `out` holds another run (and says what differs) or files that
    belong to no run; nothing is written then.
    """
    path, file = Path(out), Path(out) / RUN
    if file.exists():
        record = read_record(file)
        fix = "give every stage the same recipe and --set, or choose another --out"
        refuse_other_recipe(record.recipe, recipe, path, "a run of another recipe", fix)
        return Run(path, path / "bundle", record.recipe_sha256)
    refuse_foreign(path, "run")
    record = RunRecord(recipe=recipe.model_dump(mode="json"), recipe_sha256=recipe.sha256)
    write_part(file, record)
    return Run(path, path / "bundle", record.recipe_sha256)


def refuse_other_recipe(
    kept: dict[str, Any], recipe: Recipe, folder: Path, what: str, fix: str
) -> None:
    """Raise `BundleError`, which says what differs, where `kept` in `folder` isn't `recipe`.

    It is the same where keys that came since it was kept are at their defaults.
    """
    known, asked = _with_newer_keys(kept), recipe.model_dump(mode="json")
    if changed := list(_differences(known, asked)):
        raise BundleError(
            f"this folder holds {what}; it differs in:\n    "
            + "\n    ".join(changed[:10] + ["…"] * (len(changed) > 10)),
            where=folder,
            fix=fix,
        )


def _with_newer_keys(kept: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe as it would be kept today.

    One that today's package refuses, for a key that is no more, stays as it is, and so differs from
    all of today's.
    """
    from lorkd_deploy.recipe import parse_recipe

    try:
        return parse_recipe(kept, where="kept").model_dump(mode="json")
    except RecipeError:
        return kept


def refuse_foreign(path: Path, what: str) -> None:
    """Raise `BundleError` where `path` is a file, or a folder of files though it is no `what`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise BundleError(
            "this is a file, a folder is needed", where=path, fix="choose another --out"
        )
    foreign = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    if foreign:
        raise BundleError(
            f"this folder holds files that belong to no {what}, {foreign[0]!r} among them",
            where=path,
            fix="choose a new folder for --out",
        )


def refuse_bundle(out: str | Path, why: str) -> None:
    """Raise `BundleError` where there is a bundle in the run's folder `out` already."""
    if (Path(out) / "bundle").exists():
        raise BundleError(
            f"there is a bundle in this folder already, and {why}",
            where=out,
            fix="choose a new folder for --out",
        )


_MADE = {"grown_from": "grown", "compressed_from": "compressed", "extracted_from": "extracted"}


def refuse_other_bundle(run: Run, doing: Literal["trained", "grown"]) -> None:
    """Raise `BundleError` where the run's bundle was made by something else than this command.

    Compressed and extracted runs have the recipe, and its hash, of what would be trained in their
    place. A bundle that can't be read may be replaced.
    """
    try:
        manifest = read_part(run.bundle / MANIFEST, Manifest, BundleError, FRESH_COPY)
    except BundleError:
        return
    made = next((word for key, word in _MADE.items() if getattr(manifest, key)), "trained")
    if made != doing:
        raise BundleError(
            f"the bundle in this folder was {made}, and training would replace it",
            where=run.path,
            fix="choose a new folder for --out",
        )


@contextmanager
def claimed(out: str | Path, recipe: Recipe, doing: str) -> Iterator[Run]:
    """`claim` for the length of a block, for one writer at a time; `doing` is its verb.

    A block that fails before it has made anything leaves no run behind, so that the recipe can
    be put right and `out` be used again.
    """
    path = Path(out)
    existed, known = path.exists(), (path / RUN).exists()
    run = claim(path, recipe)
    with exclusive(path, doing):
        try:
            yield run
        except BaseException:
            left = {entry.name for entry in path.iterdir()}
            if not known and left <= {RUN, LOCK, DATA_CHECK}:
                for name in left:
                    (path / name).unlink()
                if not existed:
                    path.rmdir()
            raise


def open_run(path: str | Path) -> Run:
    """The run at `path`: its folder (copied without `run.json` too), its bundle, or any bundle.

    Raises `BundleError` where there is neither, or the run was written by a newer version.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        above = folder.absolute().parent
        if folder.absolute().name == "bundle" and (above / RUN).is_file():
            folder = folder.parent if folder.name else above
        else:
            return Run(folder, folder)
    recipe_sha256 = None
    if (folder / RUN).is_file():
        recipe_sha256 = read_record(folder / RUN).recipe_sha256
    elif not any((folder / part / MANIFEST).is_file() for part in ("bundle", "teacher")):
        what = (
            "there is no run and no bundle here" if folder.exists() else "the folder does not exist"
        )
        raise BundleError(what, where=folder, fix="give the folder that `lorkd decompose` wrote")
    return Run(folder, folder / "bundle", recipe_sha256)


def read_record(file: Path) -> RunRecord:
    """What `run.json` says; raises `BundleError` where it is damaged or of another schema."""
    return read_part(file, RunRecord, BundleError, "run the first stage again, in another --out")


def _differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """`train.epochs: 10, now 3` for every value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{place}.{key}" if place else key
            yield from _differences(old.get(key), new.get(key), below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif old != new:
        yield f"{place}: {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
