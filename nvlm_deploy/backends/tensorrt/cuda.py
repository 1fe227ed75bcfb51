"""The little of CUDA that sessions need: memory, copies, a stream, captured graphs. Through cuda-python.

Written against the runtime API of CUDA 12 and 13. Not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from nvlm_deploy.errors import NvlmError, UnsuitableError

# Of the driver's CUdevice_attribute.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class Device(Protocol):
    """Memory by address, and work in one order: that of the calls. Nothing waits but `wait`."""

    stream: int

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory, which is zero."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device; it may be changed afterwards."""

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy to a contiguous array, which holds the values after `wait`."""

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """Copy rows of `width` bytes within the device; pitches are bytes from row to row."""

    def wait(self) -> None:
        """Wait until everything is done.

        Raises:
            NvlmError: something failed on the device.
        """

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on the stream; return what puts it there again, at once."""


class Buffer:
    """Memory of a device, given back with the object."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.nbytes = nbytes
        # An address must not be null, not even that of nothing.
        self.address = device.allocate(max(nbytes, 1))
        self._end = weakref.finalize(self, device.free, self.address)


class CudaDevice:
    """The first CUDA device that this process sees."""

    def __init__(self) -> None:
        """Raise an UnsuitableError if there is no device, or no cuda-python."""
        _driver()
        self._cuda = _runtime()
        self.stream = int(self._call("cudaStreamCreate"))

    def allocate(self, nbytes: int) -> int:
        """See `Device.allocate`."""
        address = int(self._call("cudaMalloc", nbytes))
        self._call("cudaMemsetAsync", address, 0, nbytes, self.stream)
        return address

    def free(self, address: int) -> None:
        """See `Device.free`."""
        self._call("cudaFree", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Device.upload`. Pageable memory is staged before the call returns."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Device.download`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        """See `Device.copy_rows`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        shape = (target, target_pitch, source, source_pitch, width, rows)
        self._call("cudaMemcpy2DAsync", *shape, kind, self.stream)

    def wait(self) -> None:
        """See `Device.wait`."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device.capture`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        ready = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        launch = _Launch(self, ready)
        weakref.finalize(launch, self._call, "cudaGraphExecDestroy", ready)
        return launch

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call one function; return its result, if it has one."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status):
            raise NvlmError(
                f"{name} failed with CUDA error {int(status)} ({status.name})",
                hint="nvidia-smi or tegrastats shows free memory; a smaller context takes less",
            )
        return results[0] if results else None


class _Launch:
    """A captured graph."""

    def __init__(self, device: CudaDevice, ready: Any) -> None:
        self._device, self._ready = device, ready

    def __call__(self) -> None:
        self._device._call("cudaGraphLaunch", self._ready, self._device.stream)


def device_capability() -> int:
    """Return the compute capability of the first CUDA device, 89 for 8.9.

    Raises:
        UnsuitableError: there is none.
    """
    driver, value = _driver(), ctypes.c_int()
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0):
            raise UnsuitableError("the CUDA driver does not say what the first device is")
        numbers.append(value.value)
    return 10 * numbers[0] + numbers[1]


def _driver() -> ctypes.CDLL:
    """The driver, set up."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        status = None
    else:
        status = driver.cuInit(0)
        if status == 0:
            return driver
    what = "no CUDA driver" if status is None else f"no CUDA device that works (error {status})"
    raise UnsuitableError(
        f"this machine has {what}, and TensorRT engines run on GPUs alone",
        hint="open the bundle on its device; engines of ONNX Runtime run on any CPU",
    )


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise UnsuitableError(
            f"TensorRT engines need cuda-python: {error}",
            hint="pip install 'cuda-python>=12.6', of the major version of this machine's CUDA",
        ) from error
    return runtime
