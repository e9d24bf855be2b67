"""Real servers on the loopback give the engines' own answers, to the bit; both in their layouts."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.clients import Answer, Grpc, RefusedError, Rest, ask_all
from benchmarks.serving.servers import SERVERS, NoWheelError, Server, environment
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact, open_engine
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.guarded import task_guard
from lorkd_deploy.deploy.programs.layouts import LAYOUTS
from lorkd_deploy.metrics.score import probabilities
from lorkd_deploy.runtime import exporter
from tests.deploy.guarded_run import add_guards
from tests.deploy.made_run import TASKS, make_run
from tests.readme import DOCS, blocks

pytestmark = pytest.mark.slow
GIB = 2**30
PAGE = DOCS / "how-to" / "servers.md"


class Served(NamedTuple):
    """A server of a run's engines, which are `engines` by task, and pictures to ask about."""

    server: Server
    run: Path
    engines: dict[str, Artifact]
    images: Any


@pytest.fixture(scope="module", params=SERVERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    try:
        environment()
    except NoWheelError as exc:
        pytest.skip(str(exc))
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORKD_DATA", str(folder / "data"))
        run = make_run(folder / "run", folder / "data")
        add_guards(run / "bundle")
        engines = {a.engine: a for a in export(run, layout=request.param)}
        images = np.random.default_rng(4).integers(0, 256, (6, 20, 24, 3), np.uint8)
        images[3:] //= 16  # dark ones
        with Server(request.param, run / request.param, folder) as server:
            yield Served(server, run, engines, images)


def expected(run: Path, artifact: Artifact, images: Any) -> Answer:
    """What the engine itself says, and the bundle's guard of it."""
    bundle = load_bundle(run / "bundle")
    with open_engine(artifact) as runner:
        given = runner.outputs(artifact.preprocess(images))
    (task,) = artifact.tasks
    rows = probabilities(given["output"], task.kind)
    guard = task_guard(bundle, task.name)
    assert guard is not None
    return {"probabilities": rows, "guard": guard.scores(given)}


def same(found: Answer, wanted: Answer) -> bool:
    """Whether every figure is the same, but for its last bits: the server has another NumPy, whose
    exp and log round differently where the CPU has AVX-512."""
    return all(
        found[name].dtype == wanted[name].dtype
        and np.allclose(found[name], wanted[name], rtol=1e-6, atol=1e-7)
        for name in ("probabilities", "guard")
    )


def test_every_department_is_answered_as_by_its_engine_itself(served: Served) -> None:
    clients = Rest(served.server.http), Grpc(served.server.grpc)
    outside = 0
    for task in TASKS:
        wanted = expected(served.run, served.engines[task], served.images)
        for client in clients:
            found = client(task, served.images)
            assert same(found, wanted)
            labels = found["label"][:, 0].tolist()
            for label, row, score in zip(
                labels, wanted["probabilities"], wanted["guard"], strict=True
            ):
                outside += score > 1
                (entry,) = served.engines[task].tasks
                if score > 1:
                    assert label == "outside"
                elif entry.kind == "multiclass":
                    assert label == entry.classes[int(row.argmax())]
                else:
                    assert label == ", ".join(
                        c for c, p in zip(entry.classes, row, strict=True) if p >= 0.5
                    )
    assert 0 < outside < 2 * len(TASKS) * len(served.images)  # both happen
    grey = np.ascontiguousarray(served.images[:, :, :, :1])
    wanted = expected(served.run, served.engines["eye"], grey)
    assert same(clients[0]("eye", grey), wanted)


def test_what_a_server_says_of_a_model(served: Served) -> None:
    url = f"http://127.0.0.1:{served.server.http}/v2/models/eye"
    with urllib.request.urlopen(url, timeout=30) as answer:
        said = json.load(answer)
    assert [(t["name"], t["datatype"]) for t in said["inputs"]] == [("image", "UINT8")]
    kinds = {t["name"]: (t["datatype"], t["shape"]) for t in said["outputs"]}
    assert kinds == {
        "probabilities": ("FP64", [-1, 3]),
        "label": ("BYTES", [-1, 1]),
        "guard": ("FP64", [-1]),
    }


def test_the_how_to_page_starts_it_and_asks_it_so(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = served.server.layout
    start = LAYOUTS[layout].start.format(f"runs/small/{layout}")
    shown = [line.removeprefix("server/bin/") for block in blocks(PAGE) for line in block.lines]
    assert start in shown
    (client,) = (block.body for block in blocks(PAGE) if block.language == "python")
    assert "127.0.0.1:8080/v2/models/breast/" in client
    monkeypatch.chdir(tmp_path)
    Image.fromarray(served.images[0, :, :, 0]).save("scan.png")
    names: dict[str, Any] = {}
    exec(client.replace(":8080/v2/models/breast", f":{served.server.http}/v2/models/eye"), names)
    wanted = expected(served.run, served.engines["eye"], served.images[:1, :, :, :1])
    assert names["found"]["probabilities"] == wanted["probabilities"][0].tolist()


def test_a_bad_request_is_refused_by_the_protocol_and_the_server_goes_on(served: Served) -> None:
    rest, grpc = Rest(served.server.http), Grpc(served.server.grpc)
    image = served.images[:1]
    wanted = expected(served.run, served.engines["eye"], image)
    good = {"name": "image", "datatype": "UINT8", "shape": [1, 20, 24, 3]}
    good["data"] = image.reshape(-1).tolist()
    huge = [32, 4096, 2731, 3]  # 1 GB
    by_mlserver = served.server.layout == "mlserver"
    for change, by_triton in (  # 500 is what its own parser of JSON says
        ({"shape": [1, 20, 23, 3]}, 500),
        ({"shape": [1, 20, 72]}, 400),
        ({"shape": [1, 20, 18, 4]}, 400),
        ({"shape": huge}, 500),
        ({"datatype": "FP32"}, 400),
        ({"data": [0.5] * 1440}, 500),
        ({"data": [[1, 2], [3]]}, 500),
        ({"name": "picture"}, 400),
    ):
        with pytest.raises(RefusedError) as caught:
            rest.post("eye", {"inputs": [good | change]})
        assert caught.value.status == (400 if by_mlserver else by_triton), change
        assert caught.value.said, change
    for request, status in (
        ({"inputs": []}, 400),
        ({"inputs": [good], "outputs": [{"name": "nothing"}]}, 400),
        (b"{", 422 if by_mlserver else 500),
    ):
        with pytest.raises(RefusedError) as caught:
            rest.post("eye", request)
        assert caught.value.status == status
    with pytest.raises(RefusedError) as caught:
        rest.post("nose", {"inputs": [good]})
    assert caught.value.status == 404
    assert "nose" in caught.value.said
    raw = image.tobytes()
    for model, shape, kind in (
        ("eye", [1, 20, 23, 3], "UINT8"),
        ("eye", huge, "UINT8"),
        ("eye", [1, 20, 24, 3], "FP32"),
        ("nose", [1, 20, 24, 3], "UINT8"),
    ):
        with pytest.raises(RefusedError) as caught:
            grpc.post(model, shape, raw, kind)
        assert caught.value.said
    _announce(served.server.http, GIB)
    assert served.server.ready()
    assert same(rest("eye", image), wanted)
    assert same(grpc("eye", image), wanted)


def test_a_department_is_exchanged_under_load_without_a_wrong_or_lost_answer(
    served: Served,
) -> None:
    """The new engine is fp16; who asks after the exchange is answered by it."""
    old = {task: expected(served.run, served.engines[task], served.images) for task in TASKS}
    times: list[float] = []

    def exchange() -> None:
        times.append(time.perf_counter())
        layout = served.server.layout
        served.engines.update(
            {a.engine: a for a in export(served.run, precision="fp16", task=["eye"], layout=layout)}
        )
        served.server.reload("eye")
        times.append(time.perf_counter())

    clients = [Rest(served.server.http) for _ in range(8)]
    answered = ask_all(clients, 240, tuple(TASKS), served.images, exchange)
    clients[0]("eye", served.images)
    new = expected(served.run, served.engines["eye"], served.images)
    assert not same(new, old["eye"])
    assert len(answered) >= 240
    by_new = 0
    for asked in answered:
        if same(asked.answer, old[asked.model]):
            assert asked.model != "eye" or asked.began < times[1]
            continue
        assert asked.model == "eye" and asked.ended > times[0]
        assert same(asked.answer, new)
        by_new += 1
    assert by_new
    assert same(clients[0]("eye", served.images), new)
    for client in clients:
        client.close()


@pytest.mark.skipif(
    not exporter("openvino").probe().can_run, reason="the target's runtime is not installed"
)
def test_an_engine_of_another_target_is_answered_by_too(served: Served) -> None:
    layout = served.server.layout
    # In half precision, so that its answers are not those of the engine that was there.
    (engine,) = export(served.run, "openvino", precision="fp16", task=["lung"], layout=layout)
    assert engine.target == "openvino"
    served.server.reload("lung")
    wanted = expected(served.run, engine, served.images)
    assert same(Rest(served.server.http)("lung", served.images), wanted)
    assert not same(wanted, expected(served.run, served.engines["lung"], served.images))


def _announce(port: int, size: int) -> None:
    """Begin a request that says to be of `size` bytes, and leave."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        head = f"POST /v2/models/eye/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n{")
        time.sleep(0.2)
