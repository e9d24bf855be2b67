"""What a training step with experts costs beside the plain student's, in time and peak memory.

    python benchmarks/knowledge_separation.py [--quick] [--rounds 7] [--threads 2]
        [--skip VARIANT] [--go-on]

A step is forward, backward and the SGD update (momentum, weight decay), without teacher and
loading, on random images; experts have a nonzero B. Variants of a case take turns in one process,
and each runs once more in a process of its own for its peak memory:

1. `plain`: the student without experts, in contiguous and in channels-last format
2. `ours`: `add_experts`, channels-last; `ours-per-task-norms` beside it
3. `per-sample`: the papers' formula, a weight for each sample and one convolution with N groups
4. `separate`: one forward for each task, of a dense weight a task

Writes knowledge_separation.json, .md and .svg into benchmarks/results/knowledge_separation/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.experts import ExpertModel, add_experts
from lorkd_deploy.experts.layers import ExpertConv2d
from lorkd_deploy.models import build
from lorkd_deploy.profiling.environment import environment
from lorkd_deploy.profiling.memory import resident

RESULTS = Path(__file__).parent / "results" / "knowledge_separation"
STUDENTS = {
    "ShuffleNetV2 1.0x": "torchvision:shufflenet_v2_x1_0",
    "ResNet-18": "torchvision:resnet18",
}
PLAIN = ("plain-contiguous", "plain-channels-last")
VARIANTS = (*PLAIN, "ours", "ours-per-task-norms", "per-sample", "separate")
FITS = 16 * 2**30  # bytes that the per-sample weights may take
RANK, SIZE = 4, 64


@dataclass(frozen=True)
class Case:
    student: str
    samples: int
    tasks: int
    balance: str  # "even", or "uneven": counts rise evenly from 1 to 10 parts

    @property
    def counts(self) -> list[int]:
        """Samples a task, `(T,)`, at least one each."""
        parts = torch.linspace(1, 10 if self.balance == "uneven" else 1, self.tasks)
        edges = (parts.cumsum(0) / parts.sum() * (self.samples - self.tasks)).round().long()
        return (torch.diff(edges, prepend=edges.new_zeros(1)) + 1).tolist()

    @property
    def ids(self) -> Tensor:
        return torch.arange(self.tasks).repeat_interleave(torch.tensor(self.counts))

    def name(self) -> str:
        return f"{self.student}, N = {self.samples}, T = {self.tasks}, {self.balance}"


def cases(quick: bool) -> list[Case]:
    if quick:
        return [Case("ShuffleNetV2 1.0x", 20, 2, "even")]
    shuffle, residual = STUDENTS
    # Those with a bound first.
    sizes = [
        (shuffle, 160, 10),
        (shuffle, 400, 100),
        (residual, 160, 10),
        (shuffle, 160, 32),
        (shuffle, 160, 1),
        (residual, 160, 32),
        (residual, 160, 1),
        (residual, 400, 100),
    ]
    return [
        Case(student, samples, tasks, balance)
        for student, samples, tasks in sizes
        for balance in ("even", "uneven")
        if tasks > 1 or balance == "even"
    ]


def per_sample(layer: ExpertConv2d, x: Tensor) -> Tensor:
    """method.md: W' = W0 + sum over t of M[n, t] ΔW_t, one convolution with groups = N."""
    route = layer.router.enter(layer.name, x)
    counts = torch.tensor(route.counts)
    mask = torch.nn.functional.one_hot(torch.tensor(route.tasks), len(layer.ranks))
    mask = mask.repeat_interleave(counts, 0).to(x.dtype)
    delta = (layer.B @ layer.A).view(len(layer.ranks), -1) * layer.scale()
    cout, cin, kh, kw = layer.weight.shape
    # N·T·|W| numbers, as the released code has them; mask @ delta would be several times faster.
    chosen = (mask.unsqueeze(2) * delta).sum(1)
    weights = (layer.weight.reshape(-1) + chosen).view(-1, cin, kh, kw)
    n, _, height, width = x.shape
    y = torch.conv2d(
        x.reshape(1, n * cin, height, width), weights, None, layer.stride, layer.padding,
        layer.dilation, groups=n,
    )  # fmt: skip
    return y.view(n, cout, *y.shape[2:])


def step_of(variant: str, case: Case) -> Callable[[], None]:
    """A training step of one variant, ready to be called."""
    torch.manual_seed(0)
    last = variant in ("plain-channels-last", "ours", "ours-per-task-norms", "separate")
    layout = torch.channels_last if last else torch.contiguous_format
    model: nn.Module = build(STUDENTS[case.student])
    if variant not in PLAIN:
        per_task = variant == "ours-per-task-norms"
        model = add_experts(model, case.tasks, RANK, norm="per_task" if per_task else "shared")
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                nn.init.normal_(parameter, std=0.01)
    if variant == "per-sample":
        for module in model.modules():
            if isinstance(module, ExpertConv2d):
                module.forward = MethodType(per_sample, module)  # type: ignore[method-assign]
    model = model.to(memory_format=layout).train()
    images = torch.randn(case.samples, 3, SIZE, SIZE).to(memory_format=layout)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        _forward(model, variant, images, case).square().mean().backward()
        optimiser.step()

    return step


def _forward(model: nn.Module, variant: str, images: Tensor, case: Case) -> Tensor:
    if not isinstance(model, ExpertModel):
        return model(images)
    if variant != "separate":
        return model(images, task=case.ids)
    parts = images.split(case.counts)
    return torch.cat([model(part, task=t) for t, part in enumerate(parts)])


def per_sample_bytes(case: Case) -> int:
    """N·T·|W| in float32 over all layers with experts: what the papers' formula materialises."""
    model = add_experts(build(STUDENTS[case.student]), 1)
    weights = sum(torch.Size(layer.shape).numel() for layer in model.layers)
    return 4 * case.samples * case.tasks * weights


def measure(case: Case, rounds: int, skip: Sequence[str]) -> dict[str, Any]:
    """Seconds a step: wall clock and CPU time of all threads, medians of interleaved rounds."""
    needed = per_sample_bytes(case)
    variants = [v for v in VARIANTS if v not in skip and (v != "per-sample" or needed <= FITS)]
    steps = {v: step_of(v, case) for v in variants}
    wall: dict[str, list[float]] = {v: [] for v in variants}
    cpu: dict[str, list[float]] = {v: [] for v in variants}
    for round_ in range(rounds + 1):
        for variant, step in steps.items():
            began, used = time.perf_counter(), time.process_time()
            step()
            if round_:  # the first is the warm-up
                wall[variant].append(time.perf_counter() - began)
                cpu[variant].append(time.process_time() - used)
    rows = {
        v: {
            "wall_s": statistics.median(wall[v]),
            "cpu_s": statistics.median(cpu[v]),
            "cpu_min_s": min(cpu[v]),
            "peak_mib": _peak_in_fresh_process(v, case),
        }
        for v in variants
    }
    better = min(PLAIN, key=lambda v: rows[v]["wall_s"])
    for row in rows.values():
        for key in ("wall_s", "cpu_s", "cpu_min_s", "peak_mib"):
            row[f"{key.rsplit('_', 1)[0]}_ratio"] = row[key] / rows[better][key]
    return {
        "case": asdict(case), "name": case.name(), "better_plain": better,
        "per_sample_bytes": needed, "skipped": list(skip), "variants": rows,
    }  # fmt: skip


def _peak_in_fresh_process(variant: str, case: Case) -> float:
    """MiB that building and three steps add: peak resident memory over what the libraries hold."""
    command = [sys.executable, __file__, "--peak", variant, json.dumps(asdict(case))]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak(variant: str, case: Case) -> float:
    step_of(PLAIN[0], Case(case.student, 2, 1, "even"))()  # what libraries allocate once
    before = resident().now
    step = step_of(variant, case)
    for _ in range(3):
        step()
    after = resident().peak
    if before is None or after is None:
        raise SystemExit("this kernel doesn't tell a process its peak memory")
    return after - before


def table(result: dict[str, Any]) -> str:
    lines = [
        "| case | variant | step, ms | × plain | CPU time × plain | peak, MiB | × plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        for variant, row in case["variants"].items():
            lines.append(
                f"| {case['name']} | {variant} | {row['wall_s'] * 1e3:.0f} | "
                f"{row['wall_ratio']:.2f} | {row['cpu_ratio']:.2f} | {row['peak_mib']:.0f} | "
                f"{row['peak_ratio']:.2f} |"
            )
        if skipped := case.get("skipped"):
            lines.append(f"| {case['name']} | {', '.join(skipped)} | not measured | | | | |")
        if case["per_sample_bytes"] > FITS:
            need = case["per_sample_bytes"] / 2**30
            lines.append(f"| {case['name']} | per-sample | would need {need:.0f} GiB | | | | |")
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """Step time of `ours` over the plain student's against T, as an SVG of one panel."""
    points: dict[str, list[tuple[int, float]]] = {}
    for case in result["cases"]:
        what = case["case"]
        label = f"{what['student']}, {what['balance']}"
        ratio = case["variants"]["ours"]["wall_ratio"]
        points.setdefault(label, []).append((what["tasks"], ratio))
    top = max(1.5, *(r for line in points.values() for _, r in line))
    colours = ("#1b6ca8", "#7fb2d6", "#b5482f", "#e0a08f")
    x_of = {t: 60 + 130 * i for i, t in enumerate((1, 10, 32, 100))}
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 300" font-size="12" '
             'font-family="sans-serif"><rect width="660" height="300" fill="white"/>']  # fmt: skip
    for tick in (0.5, 1.0, 1.25, 1.5):
        y = 260 - 220 * tick / top
        parts.append(f'<path d="M60 {y:.1f}H450" stroke="#ccc"/>')
        parts.append(f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [f'<text x="{x}" y="280" text-anchor="middle">{t}</text>' for t, x in x_of.items()]
    parts.append('<text x="255" y="296" text-anchor="middle">tasks T</text>')
    parts.append('<text x="60" y="20">training step, ours / plain student</text>')
    for i, ((label, line), colour) in enumerate(zip(points.items(), colours, strict=False)):
        at = [(x_of.get(t, 60), 260 - 220 * r / top) for t, r in sorted(line)]
        way = " ".join(f"{x},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
        parts.append(f'<text x="470" y="{60 + 20 * i}" fill="{colour}">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def write(result: dict[str, Any]) -> None:
    """After every case, so that what was measured stays when the rest is not waited for."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = RESULTS / "knowledge_separation"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    machine, how = result["environment"], result["protocol"]
    versions = machine["packages"]
    text = (
        "# Knowledge separation: a training step on the CPU\n\n"
        f"Medians of {how['rounds']} rounds, variants in turns, {how['threads']} threads, "
        f"{how['image']} px, r = {how['rank']}, {how['precision']}, {how['optimiser']}; *plain* is "
        "the student without experts in its faster memory format. Peak memory is what building and "
        f"three steps add in a fresh process. {machine['cpu']}, {machine['allowed_cpus']} CPUs, "
        f"Python {machine['python']}, torch {versions.get('torch', torch.__version__)}, "
        f"{result['measured']}, load average {result['load_before'][0]:.1f} before and "
        f"{result['load_after'][0]:.1f} after.\n\n{table(result)}\n\n"
        "![step time against the number of tasks](knowledge_separation.svg)\n"
    )
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".svg").write_text(plot(result))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one tiny case, writes nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", default="", help="cases whose name contains this; kept with --go-on"
    )
    parser.add_argument("--skip", action="append", default=[], choices=VARIANTS[3:])
    parser.add_argument("--go-on", action="store_true", help="keep the cases measured before")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(peak(chosen.peak[0], Case(**json.loads(chosen.peak[1]))))
        return 0
    result: dict[str, Any] = {
        "protocol": {"rounds": chosen.rounds, "warmup": 1, "threads": chosen.threads,
                     "image": SIZE, "rank": RANK, "precision": "fp32",
                     "optimiser": "SGD, momentum 0.9, weight decay 1e-4"},
        "environment": environment().model_dump(mode="json"),
        "measured": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg(),
        "cases": [],
    }  # fmt: skip
    if chosen.go_on:
        kept = json.loads((RESULTS / "knowledge_separation.json").read_text())
        result |= {key: kept[key] for key in ("cases", "load_before", "measured")}
    done = {entry["name"] for entry in result["cases"]}
    for case in cases(chosen.quick):
        if chosen.only in case.name() and case.name() not in done:
            rounds = 2 if chosen.quick else chosen.rounds
            result["cases"].append(measure(case, rounds, chosen.skip))
            result["load_after"] = os.getloadavg()
            print(table({"cases": result["cases"][-1:]}), flush=True)
            if not chosen.quick and (chosen.go_on or not chosen.only):
                write(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
