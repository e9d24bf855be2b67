"""What a server adds to an engine, and that an exchange under load loses and mistakes nothing.

    python -m benchmarks.serving.latency            # writes benchmarks/results/serving.{json,md}
    python -m benchmarks.serving.latency --quick    # 2 departments, few requests; prints only

ShuffleNetV2 1.0x with random experts (no claim of accuracy), one department a task, ONNX Runtime on
the CPU, one thread an engine, one image of the network's size a request. Clients and servers share
this machine; a client is a thread with a connection of its own that asks one department after the
other at random.

    engine       the engine's own call, on a network input that is ready
    adapter      the same as base and adapter
    model step   the engine with preprocessing, probabilities and label, called in this process
    … REST       MLServer or Triton (its Python backend), JSON
    … gRPC       the same servers, raw bytes

Every answer is compared, bit by bit, with the engine's own. With 8 clients one department is
exported as base and adapter, which rounds otherwise, and loaded again while they ask; its answers
have to be the old or the new engine's, and the new one's as soon as the server says that it is
loaded. A wrong answer, or a request without one, ends the script with an error.

Memory is what a process of its own grows by when all departments are used in it, by three ways of
`benchmarks/switching.py`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # where `switching` and what it takes lie
from document import Conditions, loads, write
from switching import adapted_copy, in_a_fresh_process, make_bundle

from benchmarks.serving.clients import Asked, Grpc, Rest, ask_all
from benchmarks.serving.servers import SERVERS, Server
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.answers.model_step import PROBABILITIES, ModelStep, step_files
from lorkd_deploy.deploy.artifact import Artifact, find_artifacts, open_engine, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.storage import write_atomic

CLIENTS = 8
EXCHANGED = "task0"
WAYS = ("kept open", "on demand", "adapters")


class WrongAnswerError(Exception):
    """An answer that is not the engine's own."""


def own_answer(artifact: Artifact, images: Any) -> bytes:
    """The probabilities that the engine itself gives, bit by bit."""
    with open_engine(artifact) as runner:
        logits = runner(artifact.preprocess(images))
    return probabilities(logits, artifact.tasks[0].kind).tobytes()


def bare(
    bundle: Bundle, artifacts: Mapping[str, Artifact], images: Any, calls: int
) -> dict[str, list[float]]:
    """ms of each call of engine, engine with adapter and model step, in turns."""
    artifact = artifacts[EXCHANGED]
    same = read_artifact(adapted_copy(bundle.path) / "export" / artifact.name)
    for name, data in step_files(artifact, bundle).items():
        write_atomic(artifact.folder / name, data)
    batch = artifact.preprocess(images)
    with (
        open_engine(artifact) as runner,
        open_engine(same) as adapter,
        ModelStep(artifact.folder) as step,
    ):
        ways: dict[str, Callable[[], Any]] = {
            "engine": lambda: runner(batch),
            "adapter": lambda: adapter(batch),
            "model step": lambda: step(images),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for call in ways.values():
            call()
        for _ in range(calls):
            for name, call in ways.items():
                began = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def served(run: Path, layout: str, images: Any, requests: int, work: Path) -> dict[str, Any]:
    """A server's latencies by both protocols: of one client, then of `CLIENTS` and an exchange."""
    artifacts = {a.engine: a for a in export(run, layout=layout)}
    tasks = list(artifacts)
    old = {name: own_answer(artifact, images) for name, artifact in artifacts.items()}
    rows: dict[str, Any] = {}
    with Server(layout, run / layout, work) as server:
        protocols: dict[str, Callable[[], Any]] = {
            "REST": lambda: Rest(server.http),
            "gRPC": lambda: Grpc(server.grpc),
        }
        for name, client in protocols.items():
            one = client()
            ask_all([one], len(tasks) * 5, tasks, images)  # isn't counted
            alone = ask_all([one], requests // 8, tasks, images)
            one.close()
            check(alone, old, None, (np.inf, np.inf))
            times: list[float] = []
            fresh: list[Artifact] = []

            def exchange(times: list[float] = times, fresh: list[Artifact] = fresh) -> None:
                times.append(time.perf_counter())
                other = {"adapters": True}
                fresh.extend(export(run, options=other, task=[EXCHANGED], layout=layout))
                server.reload(EXCHANGED)
                times.append(time.perf_counter())

            began = time.perf_counter()
            clients = [client() for _ in range(CLIENTS)]
            many = ask_all(clients, requests, tasks, images, exchange)
            seconds = time.perf_counter() - began
            new = own_answer(fresh[0], images)
            if new == old[EXCHANGED]:
                raise WrongAnswerError("both engines answer alike, so that nothing would be shown")
            by_new = check(many, old, new, (times[0], times[1]))
            if not by_new:
                raise WrongAnswerError(
                    "no request came after the exchange, so that nothing is shown"
                )
            rows[name] = {
                "alone_ms": milliseconds(alone),
                "together_ms": milliseconds(many),
                "requests": len(many),
                "requests_a_second": len(many) / seconds,
                "answered_by_the_new_engine": by_new,
                "exchange_seconds": times[1] - times[0],
            }
            export(run, task=[EXCHANGED], layout=layout)  # back to what it was
            server.reload(EXCHANGED)
            for one in clients:
                one.close()
        return {"version": server.version, "protocols": rows}


def check(
    answered: Sequence[Asked],
    old: Mapping[str, bytes],
    new: bytes | None,
    exchanged: tuple[float, float],
) -> int:
    """How many answers are the new engine's; raises `WrongAnswerError` for any that is neither the
    old nor the new engine's, or not the one that was loaded then."""
    by_new = 0
    for asked in answered:
        found = asked.answer[PROBABILITIES].tobytes()
        if found == old[asked.model] and (asked.model != EXCHANGED or asked.began < exchanged[1]):
            continue
        if asked.model != EXCHANGED or found != new or asked.ended < exchanged[0]:
            raise WrongAnswerError(f"{asked.model}, asked at {asked.began:.3f}")
        by_new += 1
    return by_new


def milliseconds(answered: Sequence[Asked]) -> list[float]:
    return [1e3 * (asked.ended - asked.began) for asked in answered]


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="writes nothing")
    given = arguments.parse_args()
    count, size, requests = (2, 32, 80) if given.quick else (10, 64, 2000)
    conditions = Conditions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder / "run", count, size)
        images = parity_inputs(1, size, 5)
        artifacts = {a.engine: a for a in find_artifacts(bundle.path)}
        alone = bare(bundle, artifacts, images, requests // 8)
        memory = {way: in_a_fresh_process(bundle.path, way, count) for way in WAYS}
        order = list(SERVERS)
        random.Random(0).shuffle(order)
        servers = {}
        for layout in order:
            (folder / layout).mkdir()
            servers[layout] = served(bundle.path, layout, images, requests, folder / layout)
    document = {
        "departments": count,
        "size_px": size,
        "clients": CLIENTS,
        **conditions.now(),
        "bare_ms": alone,
        "memory_mib": memory,
        "servers": servers,
    }
    text = "\n".join(lines(document)) + "\n"
    print(text)
    if not given.quick:
        write("serving", document, text)
    return 0


def lines(document: Mapping[str, Any]) -> list[str]:
    """The figures as Markdown."""
    machine = document["environment"]
    versions = ", ".join(f"{name} {s['version']}" for name, s in document["servers"].items())
    text = [
        "# What a server adds to an engine",
        "",
        f"ShuffleNetV2 1.0x, random experts, {document['departments']} departments, "
        f"{document['size_px']} px, one image a request, ONNX Runtime "
        f"{machine['packages'].get('onnxruntime')} on the CPU, one thread an engine; {versions}. "
        f"Clients and server share {machine['allowed_cpus']} CPUs ({machine['cpu']}). Measured "
        f"{document['measured']}; {loads(document)} (where it is above the number of CPUs, times "
        "hold waiting). `benchmarks/serving/latency.py` says what the rows are.",
        "",
        f"| way | 1 client: p50, p99 ms | {document['clients']} clients: p50, p99 ms "
        "| requests a second | requests | of these by the new engine |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, times in document["bare_ms"].items():
        text.append(f"| {name} | {quantiles(times)} | | | {len(times)} | |")
    for layout, server in document["servers"].items():
        for protocol, row in server["protocols"].items():
            text.append(
                f"| {layout}, {protocol} | {quantiles(row['alone_ms'])} "
                f"| {quantiles(row['together_ms'])} | {row['requests_a_second']:.0f} "
                f"| {row['requests']} | {row['answered_by_the_new_engine']} |"
            )
    memory = [f"| {way} | {mib:.1f} |" for way, mib in document["memory_mib"].items()]
    heading = f"## Memory of {document['departments']} departments in one process"
    return [*text, "", heading, "", "| way | MiB |", "|---|---:|", *memory]


def quantiles(times: Sequence[float]) -> str:
    return f"{np.quantile(times, 0.5):.1f}, {np.quantile(times, 0.99):.1f}"


if __name__ == "__main__":
    sys.exit(main())
