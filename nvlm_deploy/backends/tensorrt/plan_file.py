"""A plan, loaded: its tensors, and execution contexts with their buffers. Not yet run on a GPU.

The calls are those that TensorRT 10 and 11 and TensorRT-RTX 1.7 have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.tensorrt.cuda import Buffer, Device
from nvlm_deploy.errors import NvlmError, UnsuitableError

Shape = tuple[int, ...]


class PlanFile:
    """An engine of the library `trt` on a device."""

    def __init__(self, trt: Any, path: Path, device: Device) -> None:
        """Deserialize `path`.

        Raises:
            UnsuitableError: the plan is of another GPU or another version.
        """
        self.trt, self.path, self.device = trt, path, device
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UnsuitableError(
                f"{path} cannot be opened by {trt.__name__} {trt.__version__} on this GPU",
                hint="a plan runs on the GPU and the version that manifest.json names; build it again here",
            )
        self.names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    @property
    def profiles(self) -> int:
        """Number of optimization profiles."""
        return int(self._engine.num_optimization_profiles)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor; -1 for free dimensions."""
        return tuple(self._engine.get_tensor_shape(name))

    def largest(self, name: str, profile: int = 0) -> Shape:
        """Largest shape of an input in a profile."""
        return tuple(self._engine.get_tensor_profile_shape(name, profile)[2])

    def itemsize(self, name: str) -> int:
        """Bytes of one number of a tensor."""
        return int(self._engine.get_tensor_dtype(name).itemsize)

    def is_input(self, name: str) -> bool:
        """Whether a tensor is an input."""
        return bool(self._engine.get_tensor_mode(name) == self.trt.TensorIOMode.INPUT)

    def context(self, profile: int) -> Context:
        """Return an execution context that has chosen a profile."""
        context = self._engine.create_execution_context()
        if context is None:
            raise NvlmError(
                f"{self.path}: there is no memory for an execution context",
                hint="build the engine with a smaller context or batch: --set target.max_context=N",
            )
        if not context.set_optimization_profile_async(profile, self.device.stream):
            raise NvlmError(f"{self.path} has no optimization profile {profile}")
        self.device.wait()
        return Context(self, context, profile)


@dataclass
class Context:
    """One execution context. Shapes and addresses stay until they are set anew."""

    plan: PlanFile
    handle: Any
    profile: int
    _bound: dict[str, tuple[Shape | None, int]] = field(default_factory=dict)
    _launch: Callable[[], None] | None = None
    _warm: bool = False

    def bind(self, name: str, address: int, shape: Shape | None = None) -> None:
        """Set the address of a tensor, and the shape of an input."""
        if self._bound.get(name) == (shape, address):
            return
        if shape is not None and not self.handle.set_input_shape(name, shape):
            raise NvlmError(f"{self.plan.path}: {name} of shape {list(shape)} is outside of its profile")
        if not self.handle.set_tensor_address(name, address):
            raise NvlmError(f"{self.plan.path} has no tensor {name}")
        self._bound[name] = (shape, address)
        # What was captured computes with the old shapes and addresses.
        self._launch, self._warm = None, False

    def bind_all(self, tensors: Mapping[str, tuple[Buffer, Shape | None]]) -> None:
        """Bind several tensors."""
        for name, (buffer, shape) in tensors.items():
            self.bind(name, buffer.address, shape)

    def run(self) -> None:
        """Put the computation on the stream."""
        if not self.handle.execute_async_v3(self.plan.device.stream):
            raise NvlmError(f"{self.plan.path}: the computation could not be started")

    def run_captured(self) -> None:
        """The same as one CUDA graph, from the third time on with the same shapes and addresses.

        The first time is not captured: libraries set themselves up in it.
        """
        if self._launch is not None:
            self._launch()
        elif self._warm:
            self._launch = self.plan.device.capture(self.run)
            self._launch()
        else:
            self.run()
            self._warm = True
