"""Which features tell a picture that isn't of a task's kind, and what the guard can't see.

    python benchmarks/guard.py RUN [--near NAME=FILE.npz ...] [--images 100]

RUN is a finished decomposition with `safety.guard: true` whose images are here. Of every expert it
takes, in torch, what the guard looks at (as the engine gives it), the channels' means and
deviations in front of the convolution halfway, what the head sees, and the logits; Mahalanobis
distances are fitted on at most 500 training images, thresholds set on the held-out validation
images at 5 % false alarms. `missed` is the share of at most `--images` test pictures that pass
although they are of another task, of a set that is near (`--near`), natural, or spoilt. "At 28 px"
every picture is first brought to 28 × 28: sets differ in sharpness, which tells more of where they
come from than of what they show. Distances, energy and softmax are held against pytorch-ood's. Five
minutes on a core.
Writes benchmarks/results/guard.json and .md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from lorkd_deploy import load_bundle
from lorkd_deploy.data.npz import read_archive
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.safety.guard import scores
from lorkd_deploy.safety.held_out import halves
from lorkd_deploy.training.networks.deployable import Guarded
from lorkd_deploy.training.networks.restore import restored

RESULTS = pathlib.Path(__file__).parent / "results"
BATCH, TRAIN = 64, 500
ORIGINS = (
    "Origins: breast, pneumonia and retina are MedMNIST v2's (CC BY 4.0); blood is the PBC set "
    "(Acevedo et al. 2020, CC BY 4.0) at 28 px; brain is figshare's brain tumour MRI (Cheng), "
    "SARTAJ and Br35H; knee is Chen 2018 (Mendeley 56rmx5bjcr, of the OAI); lung-ct is IQ-OTH/NCCD "
    '(Mendeley bhmdr45bh2); fundus is ODIR, EyePACS, HRF and others; chest-ct is "Chest CT-Scan '
    'images". Natural pictures are those of scikit-image and scikit-learn.'
)
Features = dict[str, Any]


def resized(side: int) -> Callable[[Any], Any]:
    def change(image: Any) -> Any:
        small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BILINEAR))

    return change


def cropped(image: Any) -> Any:
    quarter = len(image) // 4
    part = Image.fromarray(image[quarter:-quarter, quarter:-quarter])
    return np.asarray(part.resize(image.shape[1::-1], Image.Resampling.BILINEAR))


def with_text(image: Any) -> Any:
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    draw.text((3, 3), "R 12.3", fill=(255, 255, 255))
    draw.text((3, len(image) - 14), "L", fill=(255, 255, 255))
    return np.asarray(picture)


def noisy(image: Any) -> Any:
    noise = np.random.default_rng(1).normal(0, 25, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


SPOILT: dict[str, Callable[[Any], Any]] = {
    "upside down": lambda image: image[::-1],
    "inverted": lambda image: 255 - image,
    "cropped to a quarter": cropped,
    "noise": noisy,
    "text burnt in": with_text,
    "blurred to 16 px": resized(16),
}


def natural() -> list[Any]:
    """Random squares of the photographs that scikit-image and scikit-learn bring."""
    import skimage.data
    import sklearn.datasets

    one = pathlib.Path(skimage.data.__file__).parent
    names = (
        "astronaut.png camera.png chelsea.png coffee.png rocket.jpg coins.png grass.png gravel.png"
    )
    files = [
        one / name for name in (*names.split(), "gravel.png", "brick.png", "motorcycle_left.png")
    ]
    two = pathlib.Path(sklearn.datasets.__file__).parent / "images"
    files += [two / "china.jpg", two / "flower.jpg"]
    rng, found = np.random.default_rng(0), []
    for file in files:
        picture = Image.open(file).convert("RGB")
        for _ in range(8):
            side = int(min(picture.size) * rng.uniform(0.4, 1))
            x, y = (int(rng.integers(0, n - side + 1)) for n in picture.size)
            found.append(np.asarray(picture.crop((x, y, x + side, y + side)).resize((224, 224))))
    return found


class Seen:
    """What one expert's layers give of images."""

    def __init__(self, network: Guarded, preprocess: Any) -> None:
        self.network, self.preprocess = network.eval(), preprocess
        self.given: list[Any] = []
        for module in network.backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(lambda _, inputs: self.given.append(inputs[0]))
        network.head.register_forward_pre_hook(lambda _, inputs: self.given.append(inputs[0]))

    @torch.no_grad()
    def __call__(self, images: Any) -> Features:
        parts: dict[str, list[Any]] = {name: [] for name in ("early", "middle", "late", "logits")}
        for start in range(0, len(images), BATCH):
            self.given.clear()
            x = torch.from_numpy(self.preprocess.normalise(images[start : start + BATCH]))
            logits, early = self.network(x)
            middle = self.given[len(self.given) // 2]
            spread = [middle.mean((2, 3)), middle.std((2, 3), correction=0)]
            found = (early, torch.cat(spread, 1), self.given[-1], logits)
            for name, value in zip(parts, found, strict=True):
                parts[name].append(value.double().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}


def mahalanobis(train: Any, components: int) -> Callable[[Any], Any]:
    """Mean square of the first whitened components."""
    mean = train.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(train.T))
    order = np.argsort(variances)[::-1][:components]
    scale = np.sqrt(np.maximum(variances[order], 0) + 1e-3 * variances.mean())
    return lambda values: (((values - mean) @ (directions[:, order] / scale)) ** 2).mean(axis=1)


def detectors(train: Features, known: Any, guard: Any) -> dict[str, Callable[[Features], Any]]:
    middle, late = mahalanobis(train["middle"], 64), mahalanobis(train["late"], 16)
    early = mahalanobis(train["early"], 96)

    def energy(seen: Features) -> Any:
        z = seen["logits"]
        return -(z.max(1) + np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)))

    def softmax(seen: Features) -> Any:
        z = np.exp(seen["logits"] - seen["logits"].max(1, keepdims=True))
        return -(z / z.sum(1, keepdims=True)).max(1)

    return {
        "guard": lambda seen: scores(known, guard, seen["early"].astype(np.float32)),
        "middle": lambda seen: middle(seen["middle"]),
        "late": lambda seen: late(seen["late"]),
        "early and late": lambda seen: early(seen["early"]) + late(seen["late"]),
        "energy": energy,
        "softmax": softmax,
    }


def oracle(train: Features, test: Features, own: Mapping[str, Callable[[Features], Any]]) -> Any:
    """Largest differences from pytorch-ood: of ranks for the distance, of values for the others."""
    from pytorch_ood.detector import EnergyBased, Mahalanobis, MaxSoftmax

    logits = torch.from_numpy(test["logits"])
    found = {
        "energy": float(np.abs(EnergyBased.score(logits).numpy() - own["energy"](test)).max()),
        "softmax": float(np.abs(MaxSoftmax.score(logits).numpy() - own["softmax"](test)).max()),
    }
    theirs = Mahalanobis(lambda x: x)
    labels = torch.zeros(len(train["early"]), dtype=torch.long)
    theirs.fit_features(torch.from_numpy(train["early"]).float(), labels)
    ranked = theirs.predict_features(torch.from_numpy(test["early"]).float()).numpy()
    ours = own["guard"](test)
    found["guard, rank correlation"] = float(np.corrcoef(_ranks(ranked), _ranks(ours))[0, 1])
    return found


def _ranks(values: Any) -> Any:
    return np.argsort(np.argsort(values))


def measure(run: pathlib.Path, near: Mapping[str, str], count: int) -> dict[str, Any]:
    bundle = load_bundle(run)
    manifest = bundle.manifest
    geometry, rng = manifest.preprocess.geometry, np.random.default_rng(0)

    def drawn(split: Any, most: int, rows: Any = None) -> Any:
        rows = np.arange(len(split)) if rows is None else rows
        chosen = np.sort(rng.permutation(rows)[:most])
        return np.stack([geometry(split.images[int(row)]) for row in chosen])

    data = {task.name: bundle.data(task.name) for task in manifest.tasks}
    sets = {name: drawn(found.test, count) for name, found in data.items()}
    for name, file in near.items():
        sets[name] = drawn(read_archive(pathlib.Path(file))[0]["test"], count)
    sets["natural"] = np.stack([geometry(image) for image in natural()])
    experts = {task.name: bundle.expert(task.name) for task in manifest.tasks}
    model = restored(manifest, manifest.tasks, bundle.base, experts)
    tasks: dict[str, Any] = {}
    for place, entry in enumerate(manifest.tasks):
        task, found = entry.name, data[entry.name]
        seen = Seen(Guarded(*model.dense(place)), manifest.preprocess)
        train = seen(drawn(found.train, TRAIN))
        held = halves(found.val.labels, found.val.groups, bundle.recipe.seed).held_out
        own = detectors(train, bundle.safety(task), entry.safety.guard)
        clean = seen(sets[task])
        held_out = seen(drawn(found.val, 1000, held))
        pictures = {name: seen(images) for name, images in sets.items() if name != task}
        pictures |= {
            f"spoilt: {name}": seen(np.stack([change(i) for i in sets[task]]))
            for name, change in SPOILT.items()
        }
        pictures |= {
            f"at 28 px: {name}": seen(np.stack([resized(28)(i) for i in sets[name]]))
            for name in data
            if name != task
        }
        tasks[task] = {"pytorch-ood": oracle(train, clean, own)}
        for name, score in own.items():
            values = np.sort(score(held_out))
            rank = min(len(values), int(np.ceil((len(values) + 1) * 0.95 - 1e-9)))
            limit = 1.0 if name == "guard" else values[rank - 1]
            tasks[task][name] = {
                "false alarms": float((score(clean) > limit).mean()),
                "missed": {n: float((score(f) <= limit).mean()) for n, f in pictures.items()},
            }
        print(task, flush=True)
    return {
        "bundle": bundle.sha256,
        "architecture": manifest.architecture,
        "images": count,
        "held_out": {t.name: t.safety.guard.images for t in manifest.tasks if t.safety.guard},
        "tasks": tasks,
        "versions": manifest.versions,
        "environment": environment().model_dump(mode="json"),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def markdown(found: dict[str, Any]) -> str:
    tasks = found["tasks"]
    names = list(tasks)

    def missed(detector: str, prefix: str = "") -> list[tuple[float, str, str]]:
        return [
            (tasks[task][detector]["missed"][prefix + other], task, other)
            for task in names
            for other in names
            if other != task
        ]

    lines = [
        "# Which features tell a foreign picture",
        "",
        f"{found['architecture']}, {len(names)} tasks, at most {found['images']} pictures a set, "
        f"measured {found['measured']}. The protocol stands in `benchmarks/guard.py`.",
        "",
        ORIGINS,
        "",
        "| features | false alarms | missed, all pairs of tasks | worst pair | missed at 28 px |",
        "|---|---|---|---|---|",
    ]
    for detector in (name for name in tasks[names[0]] if name != "pytorch-ood"):
        pairs, small = missed(detector), missed(detector, "at 28 px: ")
        worst = max(pairs)
        alarms = np.mean([tasks[task][detector]["false alarms"] for task in names])
        lines.append(
            f"| {detector} | {alarms:.1%} | {np.mean([p[0] for p in pairs]):.1%} | {worst[0]:.0%}: "
            f"{worst[2]} to the expert of {worst[1]} | {np.mean([p[0] for p in small]):.1%} |"
        )
    lines += ["", "## The guard, pair by pair: share of pictures that it misses", ""]
    columns = list(dict.fromkeys(name for task in names for name in tasks[task]["guard"]["missed"]))
    lines += ["| pictures | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for column in columns:
        cells = [tasks[task]["guard"]["missed"].get(column) for task in names]
        shown = ["–" if cell is None else f"{cell:.0%}" for cell in cells]
        lines.append(f"| {column} | " + " | ".join(shown) + " |")
    alarms = [f"{tasks[task]['guard']['false alarms']:.0%}" for task in names]
    lines += [f"| its own: false alarms | {' | '.join(alarms)} |", "", "## What it can't see", ""]
    blind = [
        f"- {name}, {task}: {share:.0%} pass"
        for task in names
        for name, share in tasks[task]["guard"]["missed"].items()
        if share > 0.5
    ]
    return "\n".join([*lines, *blind, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--near", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--images", type=int, default=100)
    given = parser.parse_args()
    near = dict(pair.split("=", 1) for pair in given.near)
    found = measure(given.run, near, given.images)
    text = json.dumps(found, indent=1, sort_keys=True)
    (RESULTS / "guard.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "guard.md").write_text(markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
