"""Where a transfer starts from: a network of a finished run, or of a study's trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.errors import BundleError, UsageError, unknown_name
from lorkd_deploy.evidence.study import RECORD, StudyRecord
from lorkd_deploy.evidence.train import FOUNDATION, WEIGHTS, read_record
from lorkd_deploy.evidence.transfer.result import Untouched
from lorkd_deploy.experts import ExpertClassifier, ExpertModel
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import read_part
from lorkd_deploy.storage import read_tensors
from lorkd_deploy.training.networks.network import weights_sha256
from lorkd_deploy.training.networks.restore import restored
from lorkd_deploy.training.networks.student import build_backbone, with_experts

INITS = ("expert:TASK", "shared", "mtl", "teacher", "random", "joint")
FITS = ("experts", "head", "all")
_FIT_OF = {"teacher": ["head"], "random": ["all"], "joint": ["experts"]}  # whatever is asked for


@dataclass(frozen=True)
class Start:
    """One of `INITS`, and which of `FITS` is learnt on the new images."""

    init: str
    fit: str

    @property
    def name(self) -> str:
        """`shared+head`, as results call it."""
        return f"{self.init}+{self.fit}"

    @property
    def method(self) -> str:
        """The study's method whose training it starts from."""
        return "mtl" if self.init == "mtl" else "experts"


def parse_starts(inits: str, fits: str) -> tuple[Start, ...]:
    """Every start that makes sense: of a teacher a head is learnt, of random weights all, and with
    all tasks jointly an expert.

    Raises `UsageError` for a name that doesn't exist.
    """
    chosen = [fit.strip() for fit in fits.split(",") if fit.strip()]
    for fit in chosen:
        if fit not in FITS:
            raise unknown_name("fit", fit, FITS)
    starts: dict[Start, None] = {}
    for init in (part.strip() for part in inits.split(",") if part.strip()):
        if init not in INITS[1:] and not init.startswith("expert:"):
            raise unknown_name("init", init, INITS)
        own = _FIT_OF.get(init, chosen)
        starts |= dict.fromkeys(Start(init, fit) for fit in own)
    if not starts:
        raise UsageError("nothing is named to start from", fix=f"--init {', '.join(INITS)}")
    return tuple(starts)


@dataclass(frozen=True)
class Origin:
    """A run, by its `bundle`, or (None) a study, of whose trainings each seed has its own."""

    folder: Path
    recipe: Recipe
    bundle: Bundle | None
    sha256: str

    @property
    def teacher(self) -> Path:
        """Where the teacher's bundle lies; it need not exist."""
        if self.bundle is None:
            return self.folder / FOUNDATION / "teacher"
        return open_run(self.folder).teacher

    @property
    def cache(self) -> Path:
        """Where the teacher's features of the training images lie; it need not exist."""
        return self.teacher.parent / "cache"

    def check(self, start: Start, seed: int) -> None:
        """Raise `UsageError` or `BundleError` where there is nothing to start from."""
        kind, _, task = start.init.partition(":")
        names = [entry.name for entry in self.recipe.tasks]
        if kind == "expert" and task not in names:
            raise unknown_name("task", task, names)
        if kind == "mtl" and self.bundle is not None:
            raise UsageError(
                "a run has no second network, trained without experts",
                where=self.folder,
                fix="give the folder of a study that has mtl, or start from `shared` of a run "
                'whose experts.rank is {"*": 0}',
            )
        learns = kind == "joint" and self.recipe.transfer.kind != "none"
        if (kind == "teacher" or learns) and not self.teacher.exists():
            raise BundleError("there is no teacher here", where=self.teacher)
        if kind not in {"teacher", "random", "joint"} and self.bundle is None:
            read_record(self._training(start, seed))

    def state(self, start: Start, seed: int) -> dict[str, Tensor]:
        """The plain student's tensors: W_t of an expert, or W0, with norms that all tasks share."""
        experts = self._network(start, seed).backbone
        kind, _, task = start.init.partition(":")
        if kind == "expert":
            number = [entry.name for entry in self.recipe.tasks].index(task)
            return dict(experts.dense(number).state_dict())
        return _shared(experts)

    def engines(self, start: Start, seed: int, base: Mapping[str, Tensor]) -> dict[str, Untouched]:
        """By task what its engine is built from, W0 and its expert, fused.

        First as it is, then on `base`, the W0 that a training for another task has left.
        """
        network = self._network(start, seed)
        experts, names = network.backbone, [task.name for task in self.recipe.tasks]
        before = _fused(network)
        experts.load_base({name: base[name].cpu() for name in experts.base_state()})
        found = zip(names, before, _fused(network), strict=True)
        return {name: Untouched(before=own, after=after) for name, own, after in found}

    def _network(self, start: Start, seed: int) -> ExpertClassifier:
        if self.bundle is None:
            return _trained(self._training(start, seed))
        manifest = self.bundle.manifest
        experts = {task.name: self.bundle.expert(task.name) for task in manifest.tasks}
        return restored(manifest, manifest.tasks, self.bundle.base, experts)

    def _training(self, start: Start, seed: int) -> Path:
        return self.folder / start.method / f"seed-{seed}"


def open_origin(folder: str | Path) -> Origin:
    """Raises `BundleError` where there is neither a study nor a run with experts."""
    path = Path(folder)
    if (path / RECORD).exists():
        known = read_part(path / RECORD, StudyRecord, BundleError, "run `lorkd study` again")
        recipe = parse_recipe(known.recipe, where=path)
        return Origin(path, recipe, None, known.recipe_sha256)
    bundle = load_bundle(open_run(path).bundle)
    if bundle.manifest.kind != "experts":
        raise BundleError("this is a teacher's bundle, which has no experts", where=path)
    return Origin(path, bundle.recipe, bundle, bundle.sha256)


def _trained(folder: Path) -> ExpertClassifier:
    recipe = parse_recipe(read_record(folder).training.recipe, where=folder)
    tensors = read_tensors(folder / WEIGHTS)
    heads = [tensors[f"heads.tasks.{number}.weight"] for number in range(len(recipe.tasks))]
    experts = with_experts(build_backbone(recipe, recipe.student), recipe)
    network = ExpertClassifier(experts, heads[0].shape[1], [len(head) for head in heads])
    network.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return network


def _fused(network: ExpertClassifier) -> list[str]:
    """The SHA-256 of each task's dense network with its head."""
    tasks = range(network.backbone.tasks)
    return [weights_sha256(nn.Sequential(*network.dense(number))) for number in tasks]


def _shared(experts: ExpertModel) -> dict[str, Tensor]:
    """W0 under plain names; norms of the tasks' own are averaged over them."""
    base = experts.base_state()
    state = dict(experts.dense(0).state_dict()) | base
    each = [experts.expert_state(task) for task in range(experts.tasks)]
    for name in (state.keys() & each[0].keys()) - base.keys():  # norms of the tasks' own
        mean = torch.stack([own[name].float() for own in each]).mean(dim=0)
        state[name] = mean.to(state[name].dtype)
    return state
