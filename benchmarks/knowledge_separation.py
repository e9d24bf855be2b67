"""What a training step with experts costs beside the plain student's, in time and peak memory.

    python benchmarks/knowledge_separation.py [--quick] [--rounds 7] [--threads 2]
        [--device cuda] [--skip VARIANT] [--cases 1,2,5-8] [--go-on] [--minutes 10]
    python benchmarks/knowledge_separation.py --list
    python benchmarks/knowledge_separation.py --profile [--cases 3]

A step is forward, backward and the SGD update (momentum, weight decay), without teacher and
loading, on random images; experts have a nonzero B. On the CPU 64 px in fp32, on a GPU 224 px,
N = 1024 in bf16 autocast, and ViT-S too. Variants of a case take turns in one process, and each
runs once more for its peak memory, on the CPU in a process of its own:

1. `plain`: the student without experts, in contiguous and in channels-last format
2. `ours`: `add_experts`, channels-last
3. `per-sample`: the papers' formula, a weight for each sample and one convolution with N groups
4. `separate`: one forward for each task, of a dense weight a task
5. on a GPU `plain-compiled` and `ours-compiled`: by torch.compile, as `train.compile` has it

Writes knowledge_separation.json, .md and .svg (of a GPU knowledge_separation-cuda.json and so on)
into benchmarks/results/knowledge_separation/. The table can be made in parts: `--cases` measures
those of `--list` alone, each in the place of what was kept of it; `--go-on` keeps all that is there
and measures what isn't; after `--minutes` no further case is begun. `--profile` writes
step_profile.md there: where the time of one step of such a case goes, operator by operator.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import LorkdError, first_line
from lorkd_deploy.experts import ExpertModel, add_experts, hold_absent, route_of_counts
from lorkd_deploy.experts.layers import ExpertConv2d
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.machine.memory import resident
from lorkd_deploy.models import build
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.fitting.compiled import compiled

RESULTS = Path(__file__).parent / "results" / "knowledge_separation"
STUDENTS = {
    "ShuffleNetV2 1.0x": "torchvision:shufflenet_v2_x1_0",
    "ResNet-18": "torchvision:resnet18",
    "ViT-S": "timm:vit_small_patch16_224",  # of 224 px: on a GPU alone
}
PLAIN = ("plain-contiguous", "plain-channels-last")
COMPILED = ("plain-compiled", "ours-compiled")
VARIANTS = (*PLAIN, "ours", "per-sample", "separate", *COMPILED)
FITS = 16 * 2**30  # bytes that the per-sample weights may take
RANK = 4
PIXELS = {"cpu": 64, "cuda": 224}
SHOWN = {"plain": "#888", "ours": "#1b6ca8", "separate": "#b5482f", "per-sample": "#5c7d2b"}


@dataclass(frozen=True)
class Case:
    student: str
    samples: int
    tasks: int
    balance: str  # "even", or "uneven": the largest count is ten times the smallest
    device: str = "cpu"

    @property
    def counts(self) -> list[int]:
        """Samples a task, `(T,)`."""
        last = 1.0 if self.balance == "uneven" and self.tasks > 1 else 0.0
        parts = torch.logspace(0, last, self.tasks, dtype=torch.float64)
        edges = (parts.cumsum(0) / parts.sum() * self.samples).round().long()
        return torch.diff(edges, prepend=edges.new_zeros(1)).tolist()

    def name(self) -> str:
        spread = f", {self.counts[0]} to {self.counts[-1]}" if self.balance == "uneven" else ""
        return f"{self.student}, N = {self.samples}, T = {self.tasks}, {self.balance}{spread}"


def cases(device: str, quick: bool) -> list[Case]:
    shuffle, residual = list(STUDENTS)[:2]
    if quick:
        return [Case(shuffle, 22, 2, balance, device) for balance in ("even", "uneven")]
    if device == "cuda":  # what is asked first comes first: there may be time for some alone
        return [
            Case(student, 1024, tasks, balance, device)
            for tasks in (10, 100)
            for student in STUDENTS
            for balance in ("even", "uneven")
        ]
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
        Case(student, samples, tasks, balance, device)
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


def student(variant: str, architecture: str, tasks: int) -> nn.Module:
    """The network of one variant, its experts nonzero, in the variant's memory format."""
    torch.manual_seed(0)
    model: nn.Module = build(architecture)
    if not variant.startswith("plain"):
        model = add_experts(model, tasks, RANK)
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                nn.init.normal_(parameter, std=0.01)
    if variant == "per-sample":
        model.probed = True  # the first forward's trial is of our layers
        for module in model.modules():
            if isinstance(module, ExpertConv2d):
                module.forward = MethodType(per_sample, module)  # type: ignore[method-assign]
    return model.to(memory_format=layout_of(variant)).train()  # type: ignore[call-overload]


def layout_of(variant: str) -> torch.memory_format:
    """Channels-last but for those that are slower in it."""
    last = variant not in ("plain-contiguous", "per-sample")
    return torch.channels_last if last else torch.contiguous_format


def step_of(variant: str, case: Case) -> Callable[[], None]:
    """A training step of one variant, ready to be called."""
    model = student(variant, STUDENTS[case.student], case.tasks).to(case.device)
    size = PIXELS[case.device]
    images = torch.randn(case.samples, 3, size, size)
    images = images.to(case.device, memory_format=layout_of(variant))
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, foreach=True
    )
    hold_absent(optimiser)
    kept = ExitStack()  # for as long as the step is there
    if variant in COMPILED:
        whole = nn.Module()
        whole.backbone = model
        with torch.no_grad():
            model(images[:2], task=0) if isinstance(model, ExpertModel) else model(images[:2])
        kept.enter_context(compiled(whole, TrainSpec(compile=True)))

    def step(_kept: ExitStack = kept) -> None:
        optimiser.zero_grad()
        with torch.autocast(case.device, torch.bfloat16, enabled=case.device == "cuda"):
            features = _forward(model, variant, images, case)
        features.float().square().mean().backward()
        optimiser.step()
        if case.device == "cuda":
            torch.cuda.synchronize()

    return step


def _forward(model: nn.Module, variant: str, images: Tensor, case: Case) -> Tensor:
    if not isinstance(model, ExpertModel):
        return model(images)
    if variant != "separate":
        return model(images, task=route_of_counts(case.counts, images.device))
    parts = images.split(case.counts)
    return torch.cat([model(part, task=t) for t, part in enumerate(parts)])


def per_sample_bytes(case: Case) -> int:
    """N·T·|W| in float32 over all layers with experts: what the papers' formula materialises."""
    model = add_experts(build(STUDENTS[case.student]), 1)
    weights = sum(torch.Size(layer.shape).numel() for layer in model.layers)
    return 4 * case.samples * case.tasks * weights


def measure(case: Case, rounds: int, skip: Sequence[str], *, memory: bool = True) -> dict[str, Any]:
    """Seconds a step: wall clock and CPU time of all threads, medians of interleaved rounds.

    Without `memory` its peak is not measured: on a CPU that takes a process for each variant.
    """
    needed, before = per_sample_bytes(case), os.getloadavg()[0]
    wanted = [v for v in VARIANTS if v not in skip and (v != "per-sample" or needed <= FITS)]
    if case.device == "cpu":
        wanted = [v for v in wanted if v not in COMPILED]
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, float | None] = {}
    left_out: dict[str, str] = {}
    for v in wanted:
        try:
            steps[v], peaks[v] = _warmed_up(v, case, memory=memory)
        except (LorkdError, RuntimeError) as exc:
            if case.device == "cpu" or v in PLAIN:
                raise
            left_out[v] = first_line(exc)  # no memory, nothing to compile
    wall: dict[str, list[float]] = {v: [] for v in steps}
    cpu: dict[str, list[float]] = {v: [] for v in steps}
    for _ in range(rounds):
        for variant, step in steps.items():
            began, used = time.perf_counter(), time.process_time()
            step()
            wall[variant].append(time.perf_counter() - began)
            cpu[variant].append(time.process_time() - used)
    rows: dict[str, dict[str, Any]] = {
        v: {
            "wall_s": statistics.median(wall[v]),
            "cpu_s": statistics.median(cpu[v]),
            "cpu_min_s": min(cpu[v]),
            "peak_mib": peaks[v],
        }
        for v in steps
    }
    better = min(PLAIN, key=lambda v: rows[v]["wall_s"])
    for row in rows.values():
        for key in ("wall_s", "cpu_s", "cpu_min_s", *(["peak_mib"] if memory else [])):
            row[f"{key.rsplit('_', 1)[0]}_ratio"] = row[key] / rows[better][key]
    return {
        "case": asdict(case), "name": case.name(), "better_plain": better,
        "per_sample_bytes": needed, "skipped": list(skip), "left_out": left_out, "variants": rows,
        "rounds": rounds, "threads": torch.get_num_threads(),
        "measured": time.strftime("%Y-%m-%d"), "cpu": environment().cpu,
        "load": [before, os.getloadavg()[0]],
    }  # fmt: skip


def _warmed_up(
    variant: str, case: Case, *, memory: bool
) -> tuple[Callable[[], None], float | None]:
    """A step that has been taken once, on a GPU twice, and its peak memory in MiB."""
    if case.device == "cpu":
        step = step_of(variant, case)
        step()
        return step, _peak_in_fresh_process(variant, case) if memory else None
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = step_of(variant, case)
    for _ in range(2):
        step()
    return step, (torch.cuda.max_memory_allocated() - held) / 2**20


def _peak_in_fresh_process(variant: str, case: Case) -> float:
    """MiB that building and three steps add: peak resident memory over what the libraries hold."""
    command = [sys.executable, __file__, "--peak", variant, json.dumps(asdict(case))]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak(variant: str, case: Case) -> float:
    step_of(PLAIN[0], Case(case.student, 2, 1, "even", case.device))()  # what libraries take once
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
        "| case | variant | step, ms | × plain | × ours | CPU time × plain | peak, MiB | × plain "
        "| measured, on, load before → after |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        ours, load = case["variants"]["ours"]["wall_s"], case["load"]
        when = f"{case['measured']}, {case['cpu']}, {load[0]:.1f} → {load[1]:.1f}"
        for variant, row in case["variants"].items():
            peak = "– | –"
            if row["peak_mib"] is not None:
                peak = f"{row['peak_mib']:.0f} | {row['peak_ratio']:.2f}"
            lines.append(
                f"| {case['name']} | {variant} | {row['wall_s'] * 1e3:.0f} | "
                f"{row['wall_ratio']:.2f} | {row['wall_s'] / ours:.2f} | {row['cpu_ratio']:.2f} | "
                f"{peak} | {when} |"
            )
        skipped = case.get("skipped", [])
        if skipped:
            lines.append(
                f"| {case['name']} | {', '.join(skipped)} | left out by `--skip` | | | | | | |"
            )
        for variant, why in case.get("left_out", {}).items():
            lines.append(f"| {case['name']} | {variant} | left out: {why} | | | | | | |")
        if case["per_sample_bytes"] > FITS and "per-sample" not in skipped:
            need = case["per_sample_bytes"] / 2**30
            lines.append(f"| {case['name']} | per-sample | would need {need:.0f} GiB | | | | | | |")
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """A step's milliseconds an image against T, on a logarithmic axis, one panel a student."""
    known = {case["case"]["student"] for case in result["cases"]}
    shown = [student for student in STUDENTS if student in known]
    width = 40 + 360 * max(2, len(shown))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 310" font-size="12" '
        f'font-family="sans-serif"><rect width="{width}" height="310" fill="white"/>'
    ]
    for panel, student in enumerate(shown):
        cases_ = [case for case in result["cases"] if case["case"]["student"] == student]
        left = 50 + 360 * panel
        x_of = {t: left + 25 + 85 * i for i, t in enumerate((1, 10, 32, 100))}

        def y_of(ms: float) -> float:
            return 260 - 100 * math.log10(ms)

        parts.append(f'<text x="{left}" y="18" font-weight="bold">{student}</text>')
        parts.append(
            f'<text x="{left}" y="34">training step, ms an image (N differs with T)</text>'
        )
        for ms in (1, 2, 5, 10, 20, 50, 100):
            y = y_of(ms)
            parts.append(f'<path d="M{left} {y:.1f}h310" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 4}" y="{y + 4:.1f}" text-anchor="end">{ms}</text>')
        parts += [f'<text x="{x}" y="278" text-anchor="middle">{t}</text>' for t, x in x_of.items()]
        for name, colour in SHOWN.items():
            for balance, dashes in (("even", ""), ("uneven", ' stroke-dasharray="5 4"')):
                at = sorted(
                    (x_of[case["case"]["tasks"]], y_of(_an_image(case)[name]))
                    for case in cases_
                    if case["case"]["balance"] == balance and name in _an_image(case)
                )
                way = " ".join(f"{x},{y:.1f}" for x, y in at)
                line = f'<polyline points="{way}" fill="none" stroke="{colour}"{dashes}/>'
                parts += [
                    line,
                    *(f'<circle cx="{x}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at),
                ]
    for i, (name, colour) in enumerate(SHOWN.items()):
        parts.append(f'<text x="{50 + 80 * i}" y="300" fill="{colour}">{name}</text>')
    parts.append('<text x="390" y="300">tasks T; solid: even, dashed: uneven batches</text>')
    return "\n".join([*parts, "</svg>\n"])


def _an_image(case: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a step for an image: the better plain student, ours, separate."""
    found = {"plain": case["variants"][case["better_plain"]]}
    found |= {name: case["variants"][name] for name in SHOWN if name in case["variants"]}
    return {name: 1e3 * row["wall_s"] / case["case"]["samples"] for name, row in found.items()}


def results_stem(device: str) -> Path:
    return RESULTS / ("knowledge_separation" + ("" if device == "cpu" else f"-{device}"))


def write(result: dict[str, Any]) -> None:
    """After every case, so that what was measured stays when the rest is not waited for."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    device = result["protocol"]["device"]
    stem = results_stem(device)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    machine, how = result["environment"], result["protocol"]
    versions = machine["packages"]
    text = (
        f"# Knowledge separation: a training step on the {'GPU' if device == 'cuda' else 'CPU'}\n\n"
        f"Medians of {how['rounds']} rounds, variants in turns, {how['threads']} threads, "
        f"{how['image']} px, r = {how['rank']}, {how['precision']}, {how['optimiser']}; *plain* is "
        "the student without experts in its faster memory format. Peak memory is what building and "
        "three steps add in a fresh process; the counts of uneven batches rise geometrically by "
        f"10:1, as far as whole samples allow. {machine['allowed_cpus']} CPUs, Python "
        f"{machine['python']}, torch {versions.get('torch', torch.__version__)}. Variants of a "
        "case are measured in one run, cases one after the other, maybe on another day or "
        "machine.\n\n"
        f"{table(result)}\n\n"
        f"![step time against the number of tasks]({stem.name}.svg)\n"
    )
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".svg").write_text(plot(result))


def without_cases(rounds: int, device: str) -> dict[str, Any]:
    """What a result says of how and where, its cases still to come."""
    return {
        "protocol": {"rounds": rounds, "warmup": 1, "threads": torch.get_num_threads(),
                     "device": device, "image": PIXELS[device], "rank": RANK,
                     "precision": "fp32" if device == "cpu" else "bf16 autocast",
                     "optimiser": "SGD, momentum 0.9, weight decay 1e-4"},
        "environment": environment().model_dump(mode="json"),
        "cases": [],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one tiny case, writes nothing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=PIXELS, default="cpu")
    parser.add_argument("--list", action="store_true", help="the cases by number, and no more")
    parser.add_argument("--cases", type=numbers, help="their numbers, as 1,2,5-8; all if not given")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then begin no other case")
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes")
    parser.add_argument("--skip", action="append", default=[], choices=VARIANTS[2:])
    parser.add_argument("--go-on", action="store_true", help="keep the cases measured before")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        print(peak(chosen.peak[0], Case(**json.loads(chosen.peak[1]))))
        return 0
    every = cases(chosen.device, chosen.quick)
    wanted = [every[number - 1] for number in chosen.cases or range(1, len(every) + 1)]
    if chosen.list:
        print("\n".join(f"{number}: {case.name()}" for number, case in enumerate(every, 1)))
    elif chosen.profile:
        from step_profile import write as write_profile  # beside this script

        write_profile(wanted if chosen.cases else every[:1], RESULTS / "step_profile.md")
    else:
        make(wanted, chosen)
    return 0


def numbers(text: str) -> list[int]:
    """`1,2,5-8` → 1, 2, 5, 6, 7, 8."""
    ends = [part.partition("-") for part in text.split(",")]
    return [n for low, _, high in ends for n in range(int(low), int(high or low) + 1)]


def make(wanted: Sequence[Case], chosen: argparse.Namespace) -> None:
    """Measure `wanted`, each into the result as soon as it is there, in the order of all cases."""
    result = without_cases(chosen.rounds, chosen.device)
    if chosen.go_on or chosen.cases:
        kept = json.loads(results_stem(chosen.device).with_suffix(".json").read_text())
        result["cases"] = kept["cases"]
    if chosen.go_on:
        done = {entry["name"] for entry in result["cases"]}
        wanted = [case for case in wanted if case.name() not in done]
    order = [case.name() for case in cases(chosen.device, chosen.quick)]
    began = time.monotonic()
    for case in wanted:
        if time.monotonic() - began > 60 * chosen.minutes:
            print(f"no time left for {case.name()}: go on with --cases", flush=True)
            continue
        measured = measure(case, 2 if chosen.quick else chosen.rounds, chosen.skip)
        others = [entry for entry in result["cases"] if entry["name"] != case.name()]
        result["cases"] = sorted([*others, measured], key=lambda entry: order.index(entry["name"]))
        print(table({"cases": [measured]}), flush=True)
        if not chosen.quick:
            write(result)


if __name__ == "__main__":
    sys.exit(main())
