"""The two servers, started as their layouts say, in an environment of their own on the loopback.

The environment lies in `.venv-servers`, made as `constraints-serve.txt` says where it isn't there:
MLServer, the Triton server that the wheel `nvidia-pytriton` brings, and this checkout.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lorkd_deploy.deploy.programs.layouts import LAYOUTS
from lorkd_deploy.storage import write_atomic

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-servers"
CONSTRAINTS = ROOT / "constraints-serve.txt"
SERVERS = ("mlserver", "triton-python")
PATIENCE = 240  # seconds until a server has to be ready, on a busy machine


class NoWheelError(Exception):
    """There is no wheel of a server for this machine."""


def environment() -> Path:
    """The environment's folder; raises `NoWheelError` where there are no wheels to make it of."""
    sources = CONSTRAINTS.read_bytes() + platform.python_version().encode()
    stamp, wanted = VENV / ".installed", hashlib.sha256(sources).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return VENV
    if platform.machine() != "x86_64" or sys.version_info >= (3, 13):
        raise NoWheelError(
            f"no wheels for {platform.machine()}, Python {platform.python_version()}: NumPy 1 and "
            "the Triton server's backend end at Python 3.12"
        )
    _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV))
    pip = [sys.executable, "-m", "pip", "--python", str(VENV / "bin" / "python")]
    # Every package is pinned there, so none has to be looked for.
    _run(*pip, "install", "--quiet", "--no-compile", "--no-deps", "--requirement", str(CONSTRAINTS))
    _run(*pip, "check")
    (packages,) = VENV.glob("lib/python*/site-packages")
    (packages / "lorkd.pth").write_text(f"{ROOT}\n{ROOT / 'exporters'}\n", encoding="utf-8")
    write_atomic(stamp, wanted.encode())
    return VENV


class Server:
    """A server of `repository`, ready when the `with` block begins; it listens on free ports.

    `http` and `grpc` are these ports, `log` is what it says.
    """

    def __init__(self, layout: str, repository: Path, work: Path) -> None:
        self.layout, self.repository = layout, repository
        self.http, self.grpc, self._metrics = _free_ports(3)
        self.log = work / f"{layout}.log"
        venv = environment()
        start = shlex.split(LAYOUTS[layout].start.format(repository))
        surroundings = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
        surroundings["OMP_NUM_THREADS"] = "1"
        if layout == "mlserver":
            self._set_ports()
        else:
            start += self._triton(venv, work, surroundings)
        stream = self.log.open("wb")
        self._process = subprocess.Popen(
            start, stdout=stream, stderr=subprocess.STDOUT, env=surroundings, cwd=work
        )
        stream.close()

    def __enter__(self) -> Server:
        until = time.monotonic() + PATIENCE
        while not self.ready():
            if self._process.poll() is not None or time.monotonic() > until:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-4000:]
                self.__exit__()
                raise RuntimeError(f"{self.layout} is not ready:\n{said}")
            time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def version(self) -> str:
        """The server's, as it says by the protocol."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2", timeout=10) as answer:
            said: dict[str, Any] = json.load(answer)
        return str(said["version"])

    def ready(self) -> bool:
        """Whether it says that all models are."""
        url = f"http://127.0.0.1:{self.http}/v2/health/ready"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def reload(self, model: str) -> None:
        """Have it load a model again, by the protocol's extension for repositories."""
        url = f"http://127.0.0.1:{self.http}/v2/repository/models/{model}/load"
        request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=PATIENCE).close()

    def _set_ports(self) -> None:
        file = self.repository / "settings.json"
        ports = {"http_port": self.http, "grpc_port": self.grpc, "metrics_port": self._metrics}
        write_atomic(file, json.dumps(json.loads(file.read_text("utf-8")) | ports).encode())

    def _triton(self, venv: Path, work: Path, surroundings: dict[str, str]) -> list[str]:
        """What the wheel's server needs beside the command; the container has it in place."""
        packages = next(venv.glob("lib/python*/site-packages"))
        bundled = packages / "pytriton" / "tritonserver"
        surroundings["PATH"] = f"{bundled / 'bin'}:{surroundings['PATH']}"
        libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        surroundings["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
        backends = work / "backends"
        shutil.copytree(bundled / "backends", backends, dirs_exist_ok=True)
        version = ".".join(map(str, sys.version_info[:2]))
        stub = bundled / "python_backend_stubs" / version / "triton_python_backend_stub"
        place = shutil.copy(stub, backends / "python")
        Path(place).chmod(0o755)
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self._metrics}
        given = [f"--{name}-port={port}" for name, port in ports.items()]
        return ["--backend-directory", str(backends), *given]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[:4])} … failed:\n{(done.stdout + done.stderr)[-3000:]}"
        )
