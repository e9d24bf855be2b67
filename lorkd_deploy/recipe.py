"""The recipe: what one run does, as YAML checked by pydantic. Every fault is shown at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)

from lorkd_deploy.errors import RecipeError, UsageError, unknown_name
from lorkd_deploy.lowrank.budget import parse_budget
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.precisions.table import PRECISIONS
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import canonical_json, sha256_bytes

NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
NormKind = Literal["shared", "per_task"]
Ratio = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
RESERVED = {"teacher"}  # RUN/export/teacher holds the foundation model's engines


class Section(Part):
    """Base of every part of a recipe: unknown keys are faults, values don't change."""

    # Keys that came after the first runs: unset, they leave a run's recipe and its hash as before.
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        unset = {key for key in self.later if getattr(self, key) == fields[key].default}
        return {key: value for key, value in dumped.items() if key not in unset}


class MedMnistData(Section):
    """One of the 12 two-dimensional MedMNIST v2 sets."""

    source: Literal["medmnist"]
    name: str = Field(description="breastmnist, pneumoniamnist, …")
    size: Literal[28, 64, 128, 224] = 28


class NpzData(Section):
    """A NumPy archive with the keys of MedMNIST (`train_images`, `train_labels`, …)."""

    source: Literal["npz"]
    path: str = Field(description="a file; a relative path is looked for in the data folders")
    classes: tuple[str, ...] | None = Field(default=None, description="names, in label order")


class ImageFolderData(Section):
    """`train/val/test/CLASS/*.png|jpg` below one folder."""

    source: Literal["image-folder"]
    path: str


class PhantomData(Section):
    """Procedurally drawn images, for the demo and for CI; never for a claim of accuracy."""

    source: Literal["phantom"]
    name: Literal["cells", "fundus", "tissue", "xray"]
    train: int = Field(default=512, ge=8)
    val: int = Field(default=128, ge=8)
    test: int = Field(default=256, ge=8)
    seed: int = 0


DataSpec = Annotated[
    MedMnistData | NpzData | ImageFolderData | PhantomData, Field(discriminator="source")
]


def _told_once(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as exc:
        raise ValueError(
            "a rank is a number of at least 1, or layer patterns with numbers of at least 0, such "
            'as {"*": 4, "stage4.*": 8}; experts.rank may be auto, with experts.budget'
        ) from exc


# One number, or by pattern of layer names; the pattern that fits most closely counts.
_Ranks = Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]]
Rank = Annotated[_Ranks, WrapValidator(_told_once)]
RankOrAuto = Annotated[Literal["auto"] | _Ranks, WrapValidator(_told_once)]


class TaskSpec(Section):
    """One label set and one expert."""

    name: str
    data: DataSpec
    rank: Rank | None = Field(default=None, description="overrides experts.rank for this task")
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="probability from which an answer is positive, for sensitivity and "
        "specificity; unset: chosen on the validation split (Youden)",
    )
    later = frozenset({"threshold"})

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        return _checked_name(value)


class DepartmentSpec(Section):
    """Who deploys: owns one or more tasks and gets an engine for each."""

    name: str
    tasks: tuple[TaskSpec, ...] = Field(min_length=1)

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        return _checked_name(value)


class VerticalFlip(Section):
    """Upside down; for images without an up, such as cells and tissue."""

    kind: Literal["vertical_flip"]
    probability: float = Field(default=0.5, ge=0, le=1)


class RandomResizedCrop(Section):
    """A part of the image, at the image's size."""

    kind: Literal["random_resized_crop"]
    scale: tuple[Fraction, Fraction] = Field(default=(0.8, 1.0), description="of the area")
    ratio: tuple[Ratio, Ratio] = Field(default=(0.9, 1.1), description="width / height")

    @field_validator("scale", "ratio")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _from_to(value)


class Rotation(Section):
    kind: Literal["rotation"]
    degrees: float = Field(default=10, gt=0, le=180, description="at most, in either direction")


class ColorJitter(Section):
    """Each a largest relative change; hue as a fraction of the colour circle."""

    kind: Literal["color_jitter"]
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, le=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)


class GaussianBlur(Section):
    kind: Literal["gaussian_blur"]
    sigma: tuple[Ratio, Ratio] = Field(default=(0.1, 1.0), description="px")
    probability: float = Field(default=0.5, ge=0, le=1)

    @field_validator("sigma")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _from_to(value)


class RandomErasing(Section):
    """A rectangle in the image's mean colour."""

    kind: Literal["random_erasing"]
    scale: tuple[Fraction, Fraction] = Field(default=(0.02, 0.1), description="of the area")
    probability: float = Field(default=0.25, ge=0, le=1)

    @field_validator("scale")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        return _from_to(value)


AugmentSpec = Annotated[
    VerticalFlip | RandomResizedCrop | Rotation | ColorJitter | GaussianBlur | RandomErasing,
    Field(discriminator="kind"),
]


class TrainSpec(Section):
    """How a network is trained; the teacher and the student have one each."""

    epochs: float = Field(default=10, gt=0, description="passes over the sum of all training sets")
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1, description="fraction of all steps")
    temperature: float = Field(
        default=2.0,
        ge=1,
        description="a task of n images is drawn with weight n^(1/temperature): "
        "1 in proportion to size, large values evenly",
    )
    flip: bool = Field(default=True, description="mirror half of the training images left–right")
    shift: float = Field(
        default=0.0, ge=0, lt=0.5, description="move images by up to this fraction of their side"
    )
    augment: tuple[AugmentSpec, ...] = Field(
        default=(),
        description="further changes of training images, in this order, by torchvision's v2 "
        "functions: vertical_flip, random_resized_crop, rotation, color_jitter, gaussian_blur, "
        "random_erasing",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="bf16: autocast, with fp32 weights; fp16: the same with a scaled loss, for "
        "GPUs without bf16; auto: bf16 where the GPU or CPU has its arithmetic, else fp32",
    )
    channels_last: bool = Field(
        default=True, description="keep images as NHWC in memory: faster wherever it was tried"
    )
    compile: bool = Field(
        default=False,
        description="torch.compile of the teacher's backbone, or of the student's layers between "
        "those with experts; needs a C++ compiler and minutes before the first step",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts in which a batch passes, one after another, before the weights are "
        "updated once: less memory for the same update, but for batch statistics",
    )
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of all gradients together; unset: any"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of each label that goes to all classes of its task alike, of a "
        "multi-label task's finding to its presence and absence",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: a task's classes weigh the same in its loss however many training "
        "images each has",
    )
    validate_every: float = Field(default=1, gt=0, description="epochs between validations")
    checkpoint_minutes: float = Field(default=5, ge=0, description="0: after every step")
    later = frozenset(
        {"augment", "channels_last", "compile", "accumulate", "clip", "class_weights"}
    )


class TeacherSpec(Section):
    """The foundation model: trained by this recipe, or imported and given task heads."""

    architecture: str = Field(
        default="torchvision:resnet50",
        description="torchvision:NAME, timm:NAME or pkg.module:function (images → features)",
    )
    checkpoint: str | None = Field(
        default=None, description="safetensors, or a torch file that loads with weights_only=True"
    )
    prefix: dict[str, str] = Field(
        default_factory=dict, description="key prefixes to replace, e.g. {'module.': ''}"
    )
    fit: Literal["all", "heads", "none"] = Field(
        default="all",
        description="what training changes: everything, only the task heads, or nothing "
        "(the checkpoint has the heads: map its keys to 'backbone.' and 'heads.tasks.INDEX.')",
    )
    train: TrainSpec = TrainSpec()


class StudentSpec(Section):
    """The light network whose weights become W0."""

    architecture: str = "torchvision:shufflenet_v2_x1_0"
    checkpoint: str | None = None
    prefix: dict[str, str] = Field(default_factory=dict)


class ExpertSpec(Section):
    """The low-rank experts (LoRKD, section 3)."""

    rank: RankOrAuto = Field(
        default=4,
        description='a number, or by layer: {"*": 4, "stage4.*": 8}; auto: trained at '
        "highest_rank, then each layer's by the singular values of its ΔW, within budget",
    )
    budget: str | None = Field(
        default=None,
        description="with rank: auto, at most this for each task: 0.3MB of its file (factors, "
        "head, norms of its own), or '40000 parameters' of its factors",
    )
    highest_rank: Rank = Field(default=8, description="with rank: auto, the rank in training")
    alpha: float = Field(default=16, gt=0, description="ΔW is scaled by alpha / rank")
    norm: NormKind = "shared"
    factorisation: Factorisation = Field(
        default="interleaved",
        description="of kernels larger than a pixel: interleaved, the papers', or separable, a "
        "convolution to rank channels and a 1 × 1 behind it",
    )
    skip: tuple[str, ...] = Field(
        default=(), description='layers without experts, by name or pattern: ["*.attn.*"]'
    )
    later = frozenset({"factorisation", "skip", "budget", "highest_rank"})

    @field_validator("budget")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_budget(value)
            except UsageError as exc:
                raise ValueError(f"{exc.what}: {exc.fix}") from exc
        return value

    @model_validator(mode="after")
    def _budget_and_auto(self) -> ExpertSpec:
        if self.rank == "auto" and self.budget is None:
            raise ValueError(
                "rank: auto needs a budget for each task: budget: 0.3MB, or 40000 parameters"
            )
        for key in ("budget", "highest_rank"):
            if self.rank != "auto" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for rank: auto, the rank here is {self.rank}")
        return self

    @property
    def trained_rank(self) -> int | dict[str, int]:
        """The rank that experts are trained at."""
        return self.highest_rank if self.rank == "auto" else self.rank


class TransferSpec(Section):
    """What the student learns from the teacher beside the labels."""

    kind: Literal["features", "logits", "none"] = "features"
    tau: float = Field(default=10, gt=0)
    beta: float = Field(default=1, ge=0)


class ToleranceSpec(Section):
    """How far engines of one precision may be from the model; what isn't given stays."""

    logits: float | None = Field(
        default=None,
        gt=0,
        description="difference as a fraction of max(1, largest logit); on generated inputs it "
        "changes in proportion",
    )
    flips: float | None = Field(
        default=None, ge=0, le=1, description="share of the test images' labels that may differ"
    )


class ParitySpec(Section):
    """The proof that an engine equals the model it came from."""

    inputs: int = Field(default=64, ge=1, description="generated inputs a task")
    test_images: int = Field(default=256, ge=0, description="at most this many a task")
    images: Literal["reference", "bundle"] = Field(
        default="reference",
        description="reference: index and hash only; bundle: ship the images beside the weights",
    )
    tolerance: dict[str, ToleranceSpec] = Field(
        default={}, description="by precision, e.g. {int8: {logits: 0.3}}"
    )
    later = frozenset({"tolerance"})

    @field_validator("tolerance")
    @classmethod
    def _known_precisions(cls, value: dict[str, ToleranceSpec]) -> dict[str, ToleranceSpec]:
        if unknown := [name for name in value if name not in PRECISIONS]:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(PRECISIONS)}")
        return value


class CalibrationSpec(Section):
    """The training images that int8 is calibrated on; never any of the test split."""

    images: int = Field(default=256, ge=1, description="for an engine")
    seed: int = Field(default=0, ge=0)


class ExportSpec(Section):
    # No choice: nothing ever read it. It stays in a run's recipe, and so in its hash, as it was.
    targets: tuple[str, ...] = ("onnx",)
    opset: int = Field(default=18, ge=18, le=23)

    @field_validator("targets")
    @classmethod
    def _as_it_was(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value != ("onnx",):
            raise ValueError("a recipe names no targets: `lorkd export --target` does")
        return value


class BenchmarkSpec(Section):
    """The measuring protocol; see `lorkd benchmark --help`."""

    rounds: int = Field(default=5, ge=1)
    seconds: float = Field(default=3, gt=0, description="at least this long a round")
    iterations: int = Field(default=100, ge=1, description="images a round at least")
    warmup: int = Field(default=20, ge=0)
    threads: int = Field(default=1, ge=1)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    seed: int = 0
    repeats: int = Field(
        default=3, ge=0, le=3, description="how often a disturbed round is measured again at most"
    )
    largest_batch: int = Field(
        default=256, ge=0, description="the best batch is looked for up to this; 0: not at all"
    )
    uncached: bool = Field(
        default=True,
        description="start each engine once more a round, with its files out of the system's cache",
    )
    later = frozenset({"repeats", "largest_batch", "uncached"})


class Recipe(Section):
    """Everything one run needs to know."""

    name: str
    description: str = ""
    seed: int = Field(default=0, ge=0)
    data_folder: str | None = Field(
        default=None, description="looked in before LORKD_DATA and ~/.medmnist"
    )
    departments: tuple[DepartmentSpec, ...] = Field(min_length=1)
    preprocess: Preprocess
    teacher: TeacherSpec = TeacherSpec()
    student: StudentSpec = StudentSpec()
    experts: ExpertSpec = ExpertSpec()
    transfer: TransferSpec = TransferSpec()
    train: TrainSpec = TrainSpec()
    parity: ParitySpec = ParitySpec()
    calibration: CalibrationSpec = CalibrationSpec()
    export: ExportSpec = ExportSpec()
    benchmark: BenchmarkSpec = BenchmarkSpec()
    later = frozenset({"calibration"})

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        return _checked_name(value)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Recipe:
        departments = [d.name for d in self.departments]
        tasks = [t.name for t in self.tasks]
        for kind, names in (("department", departments), ("task", tasks)):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{kind} named twice: {', '.join(twice)}")
        return self

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Every task, in the recipe's order: the order of the experts."""
        return tuple(task for department in self.departments for task in department.tasks)

    @property
    def sha256(self) -> str:
        """Hash of the resolved recipe: `--resume` and later stages refuse another one."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))


def _from_to(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("wanted a smallest and a largest value, in this order")
    return value


def _checked_name(value: str) -> str:
    if not NAME.match(value):
        raise ValueError("a name has lower-case letters, digits, '-' and '_', 63 at most")
    if value in RESERVED:
        raise ValueError(f"the name {value!r} is reserved")
    return value


def shipped_recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with the package."""
    return {path.stem: path for path in sorted(_recipe_files())}


def _recipe_files() -> Iterator[Path]:
    # An installed wheel carries them as package data; in an editable install they lie in the
    # checkout, where importlib.resources doesn't find force-included files.
    packaged = Path(str(resources.files("lorkd_deploy"))) / "recipes"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[1] / "recipes"
    yield from folder.glob("*.yaml")


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a file; `overrides` are `key.path=value` in YAML.

    Raises `RecipeError` listing every fault with its place, `UsageError` for an unknown name.
    """
    path = _find(recipe)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise RecipeError(f"the recipe is not valid YAML: {exc}", where=path) from exc
    except OSError as exc:
        raise RecipeError(f"the recipe can't be read: {exc.strerror}", where=path) from exc
    if not isinstance(raw, dict):
        raise RecipeError("the recipe is not a mapping of keys to values", where=path)
    for override in overrides:
        _apply(raw, override)
    return parse_recipe(raw, where=path)


def parse_recipe(raw: Any, *, where: object) -> Recipe:
    """Validate a parsed recipe; raises one `RecipeError` with all faults and their places."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as exc:
        faults = [f"{_place(e['loc'])}: {_message(e)}" for e in _own_faults(exc.errors())]
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            f"the recipe has {count}:\n    " + "\n    ".join(faults),
            where=where,
            fix="`lorkd recipe show demo` prints a commented recipe",
        ) from exc


def _find(recipe: str | Path) -> Path:
    path = Path(recipe)
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    if path.is_file():
        return path
    raise unknown_name("recipe (nor file)", str(recipe), shipped)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override!r} is not of the form key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML") from exc
    place: Any = raw
    parts = key.split(".")
    for part in parts[:-1]:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise RecipeError(f"--set {override!r}: there is nothing at {part!r}")
    if isinstance(place, list) and parts[-1].isdigit() and int(parts[-1]) < len(place):
        place[int(parts[-1])] = value
    elif isinstance(place, dict):
        place[parts[-1]] = value
    else:
        raise RecipeError(f"--set {override!r}: there is nothing at {parts[-1]!r}")


def _own_faults(errors: Sequence[Any]) -> list[Any]:
    """Without "at least 1 item" for a list whose only item is what has the fault."""
    places = [error["loc"] for error in errors]
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(
            len(p) > len(error["loc"]) and p[: len(error["loc"])] == error["loc"] for p in places
        )
    ]


def _place(loc: tuple[int | str, ...]) -> str:
    sources = {"medmnist", "npz", "image-folder", "phantom"}
    shown = ""
    for index, part in enumerate(loc):
        if isinstance(part, int):
            shown += f"[{part}]"
        elif part in sources and index and loc[index - 1] == "data":
            continue  # pydantic's name for the chosen kind of data, no key of the file
        elif index > 1 and loc[index - 2] == "augment":
            continue  # the same of the chosen change
        else:
            shown += f".{part}" if shown else part
    return shown or "recipe"


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        if "augment" in error["loc"]:
            return (
                "needs a `kind`: 'vertical_flip', 'random_resized_crop', 'rotation', "
                "'color_jitter', 'gaussian_blur' or 'random_erasing'"
            )
        return "needs a `source`: 'image-folder', 'medmnist', 'npz' or 'phantom'"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")
