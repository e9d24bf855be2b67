"""The few calls of the CUDA driver that running an engine takes, without another package.

Every machine with an NVIDIA driver has `libcuda.so.1`, a Jetson too. Not run in this project's own
tests, which have no GPU; written against the documented CUDA driver API (12 and 13).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32
from lorkd_deploy.errors import RuntimeUnavailableError

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver lists; `capability` is 86 for compute capability 8.6."""

    name: str
    capability: int


@cache
def _driver() -> Any:
    driver = ctypes.CDLL(LIBRARY)
    if code := driver.cuInit(0):
        raise OSError(f"cuInit gave {code}")
    return driver


def gpus() -> list[Gpu]:
    """The GPUs here; empty where there is no driver or it doesn't start."""
    try:
        driver = _driver()
    except OSError:
        return []
    count = ctypes.c_int()
    _check(driver.cuDeviceGetCount(ctypes.byref(count)), "count GPUs")
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        _check(driver.cuDeviceGet(ctypes.byref(device), index), "open the GPU")
        _check(driver.cuDeviceGetName(name, len(name), device), "name the GPU")
        for value, attribute in ((major, MAJOR), (minor, MINOR)):
            code = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            _check(code, "ask the GPU")
        found.append(Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value))
    return found


class Device:
    """The first GPU: its primary context (the one that TensorRT uses), a stream, and buffers."""

    def __init__(self) -> None:
        self._cuda = _driver()
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._buffers: list[ctypes.c_uint64] = []
        _check(self._cuda.cuDeviceGet(ctypes.byref(self._device), 0), "open the GPU")
        code = self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device)
        _check(code, "open the GPU")
        self.use()
        _check(self._cuda.cuStreamCreate(ctypes.byref(self._stream), 1), "make a stream")

    @property
    def stream(self) -> int:
        """Handle of the stream that everything is queued on."""
        return self._stream.value or 0

    def use(self) -> None:
        """Make the context current in this thread."""
        _check(self._cuda.cuCtxSetCurrent(self._context), "use the GPU")

    def allocate(self, size: int) -> int:
        """The address of a new buffer of `size` bytes, freed by `close`."""
        pointer = ctypes.c_uint64()
        code = self._cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
        _check(code, f"allocate {size / 2**20:.0f} MiB")
        self._buffers.append(pointer)
        return int(pointer.value)

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queue the copy of a contiguous array to the GPU."""
        code = self._cuda.cuMemcpyHtoDAsync_v2(
            ctypes.c_uint64(address),
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )
        _check(code, "copy to the GPU")

    def download(self, address: int, shape: tuple[int, ...]) -> F32:
        """Wait for everything that is queued, then for float32 `shape` from the GPU."""
        array = np.empty(shape, np.float32)
        code = self._cuda.cuMemcpyDtoHAsync_v2(
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
            self._stream,
        )
        _check(code, "copy from the GPU")
        _check(self._cuda.cuStreamSynchronize(self._stream), "run the engine")
        return array

    def close(self) -> None:
        """Free the buffers, the stream and the context; a second call does nothing."""
        if not self._stream:
            return
        self.use()
        for pointer in self._buffers:
            self._cuda.cuMemFree_v2(pointer)
        self._cuda.cuStreamDestroy_v2(self._stream)
        self._cuda.cuDevicePrimaryCtxRelease_v2(self._device)
        self._buffers, self._stream = [], ctypes.c_void_p()


def _check(code: int, doing: str) -> None:
    if code:
        raise RuntimeUnavailableError(
            f"the CUDA driver failed to {doing} (error {code})", fix="`lorkd doctor` shows the GPU"
        )
