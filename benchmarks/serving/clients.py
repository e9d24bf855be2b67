"""Clients of the open inference protocol, by REST and by gRPC, and many of them at a time."""

from __future__ import annotations

import ast
import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.serving.servers import VENV

Answer = Mapping[str, Any]
Ask = Callable[[str, Any], Answer]
TYPES = {"FP64": "<f8", "FP32": "<f4", "UINT8": "|u1"}
AFTER = 5
SERVICE = "/inference.GRPCInferenceService"


class RefusedError(Exception):
    """What a server says of a request that it doesn't answer; `status` is the protocol's."""

    def __init__(self, status: Any, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


class Rest:
    """One connection, kept open, of one thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def __call__(self, model: str, images: Any) -> Answer:
        """Every output of a model by name, of uint8 images `(N, H, W, C)`."""
        given = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
        return self.post(model, {"inputs": [{**given, "data": images.reshape(-1).tolist()}]})

    def close(self) -> None:
        self._connection.close()

    def post(self, model: str, request: Any) -> Answer:
        """The same of a whole request, as an object or as bytes; raises `RefusedError`."""
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        header = {"Content-Type": "application/json"}
        self._connection.request("POST", f"/v2/models/{model}/infer", body, header)
        response = self._connection.getresponse()
        said = json.loads(response.read())
        if response.status != 200:
            raise RefusedError(response.status, said.get("error", ""))
        return {entry["name"]: _array(entry, entry["data"]) for entry in said["outputs"]}


class Grpc:
    """A channel, which any thread may use; tensors go as raw bytes."""

    def __init__(self, port: int) -> None:
        import grpc
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        pool = descriptor_pool.DescriptorPool()
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(_protocol()))
        kinds = message_factory.GetMessageClassesForFiles(["dataplane.proto"], pool)
        self._request = kinds["inference.ModelInferRequest"]
        self._error = grpc.RpcError
        largest = [("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=largest)
        self._infer = self._channel.unary_unary(
            f"{SERVICE}/ModelInfer",
            request_serializer=self._request.SerializeToString,
            response_deserializer=kinds["inference.ModelInferResponse"].FromString,
        )

    def __call__(self, model: str, images: Any) -> Answer:
        """Every output of a model by name, of uint8 images `(N, H, W, C)`."""
        return self.post(model, images.shape, images.tobytes())

    def post(self, model: str, shape: Sequence[int], raw: bytes, datatype: str = "UINT8") -> Answer:
        """The same of bytes that needn't fit what is announced; raises `RefusedError`."""
        request = self._request(model_name=model, raw_input_contents=[raw])
        request.inputs.add(name="image", datatype=datatype, shape=shape)
        try:
            response = self._infer(request, timeout=120)
        except self._error as exc:
            raise RefusedError(exc.code().name, exc.details()) from exc
        outputs = zip(response.outputs, response.raw_output_contents, strict=True)
        return {
            entry.name: _array({"datatype": entry.datatype, "shape": entry.shape}, raw)
            for entry, raw in outputs
        }

    def close(self) -> None:
        self._channel.close()


class Asked(NamedTuple):
    """One request of many: when it was sent and answered (seconds), and what came."""

    model: str
    began: float
    ended: float
    answer: Answer


def ask_all(
    clients: Sequence[Ask],
    requests: int,
    models: Sequence[str],
    images: Any,
    meanwhile: Callable[[], None] | None = None,
) -> list[Asked]:
    """Each client in a thread of its own asks random models one after the other, `requests` in all.

    `meanwhile` is called once a third of them is answered; where that takes longer than the
    requests, the clients go on until it has ended and each has asked `AFTER` times more. A request
    that fails ends its client, and is raised here.
    """
    answered: list[Asked] = []
    third, over = threading.Event(), threading.Event()

    def client(number: int) -> None:
        chosen = np.random.default_rng(number)
        asked = after = 0
        try:
            while asked < requests // len(clients) or after < AFTER:
                after += over.is_set()
                model = models[int(chosen.integers(len(models)))]
                began = time.perf_counter()
                answer = clients[number](model, images)
                answered.append(Asked(model, began, time.perf_counter(), answer))
                asked += 1
                if len(answered) >= requests // 3:
                    third.set()
        finally:
            third.set()

    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(client, number) for number in range(len(clients))]
        try:
            if meanwhile is not None:
                third.wait()
                meanwhile()
        finally:
            over.set()
        for one in running:
            one.result()
    return answered


def _array(entry: Mapping[str, Any], data: Any) -> Any:
    """A tensor of an answer, from a list or from raw bytes."""
    shape, datatype = list(entry["shape"]), entry["datatype"]
    if datatype == "BYTES":
        return np.array(_texts(data) if isinstance(data, bytes) else data, object).reshape(shape)
    if isinstance(data, bytes):
        return np.frombuffer(data, TYPES[datatype]).reshape(shape)
    return np.array(data, TYPES[datatype]).reshape(shape)


def _texts(data: bytes) -> list[str]:
    """Texts, each behind its length in four bytes."""
    found = []
    while data:
        length = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found


def _protocol() -> bytes:
    """The protocol's messages, from what MLServer's wheel has of it: its own module wants an older
    protobuf than this environment's."""
    (file,) = VENV.glob("lib/python*/site-packages/mlserver/grpc/dataplane_pb2.py")
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and "AddSerializedFile" in ast.unparse(node.func):
            return bytes(ast.literal_eval(node.args[0]))
    raise RuntimeError(f"{file} holds no description of the protocol")
