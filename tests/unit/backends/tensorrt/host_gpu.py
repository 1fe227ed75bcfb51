"""A device of host memory, and TensorRT's objects as far as sessions call them, computing with ONNX Runtime.

Inputs are read from the bound addresses and outputs written to theirs, so that sessions are held to what
they bind: shapes within the profile, addresses that hold the data, caches that are written in place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from nvlm_deploy.backends.tensorrt.profiles import Profile

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}
Shape = tuple[int, ...]


class HostDevice:
    """See `Device`."""

    stream = 7

    def __init__(self) -> None:
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self.captured = 0

    def allocate(self, nbytes: int) -> int:
        array = np.zeros(nbytes, np.uint8)
        self._memory[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, address: int) -> None:
        del self._memory[address]

    def upload(self, address: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self.view(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, array: NDArray[Any], address: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.view(address, array.nbytes)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        for row in range(rows):
            piece = self.view(source + row * source_pitch, width)
            self.view(target + row * target_pitch, width)[:] = piece

    def wait(self) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        return work

    def view(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes at an address, all of them within one piece of memory."""
        inside = any(a <= address and address + nbytes <= a + len(m) for a, m in self._memory.items())
        assert inside, "a session reads or writes outside of its memory"
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class HostTensorRt(SimpleNamespace):
    """The module: what `deserialize_cuda_engine` gives back computes with the graph beside the plan."""

    def __init__(self, device: HostDevice, profiles: tuple[Profile, ...]) -> None:
        logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
        engine = lambda plan: _Engine(plan.decode(), device, profiles) if plan else None  # noqa: E731
        super().__init__(
            __name__="host",
            __version__="0",
            Logger=logger,
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=engine),
            TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        )


class _Engine:
    def __init__(self, graph: str, device: HostDevice, profiles: tuple[Profile, ...]) -> None:
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.device, self.profiles = device, profiles
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_shape(self, name: str) -> Shape:
        value = (self.inputs | self.outputs)[name]
        return tuple(size if isinstance(size, int) else -1 for size in value.shape)

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(_TYPES[(self.inputs | self.outputs)[name].type])

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[Shape, Shape, Shape]:
        fixed = self.get_tensor_shape(name)
        return self.profiles[profile].get(name, (fixed, fixed, fixed))

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._profile = engine, -1
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return profile < len(self._engine.profiles)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, device = self._engine, self._engine.device
        feeds = {}
        for name in engine.inputs:
            dtype, shape = engine.get_tensor_dtype(name), self._shapes[name]
            data = device.view(self._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feeds[name] = data.view(dtype).reshape(shape).copy()
        for name, result in zip(engine.outputs, engine.session.run(None, feeds), strict=True):
            if name.startswith("present_"):
                past = self._addresses[name.replace("present_", "past_")]
                assert self._addresses[name] == past, "a cache that is written in place is one memory"
            device.upload(self._addresses[name], np.ascontiguousarray(result))
        return True
