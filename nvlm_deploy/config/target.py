"""Targets: the devices that engines are built for (`engines/targets/*.yaml`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nvlm_deploy.config.catalog import load_yaml_model
from nvlm_deploy.config.machine import host_architecture
from nvlm_deploy.config.overrides import Override

Backend = Literal["onnxruntime", "tensorrt_llm", "tensorrt", "tensorrt_rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"]
Component = Literal["jetpack", "cuda", "tensorrt", "tensorrt_llm", "tensorrt_rtx", "onnxruntime"]

GIB = 1 << 30
TARGET_PREFIX = "target."
_BACKEND_OVERRIDE = "backend="
_SET_BY_USER = "set by the user"
# What a target is and how it is called; everything else is a fact that has a source.
_NO_FACTS = {
    "name",
    "description",
    "architecture",
    "backends",
    "backend",
    "compute",
    "decoder_profiles",
    "sources",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Memory(_Section):
    """Memory of the device in GiB (2^30 bytes).

    `usable_gib` is what one process can have: what the driver or the kernel shows, less what the system
    itself holds. `unified`: CPU and GPU share it, so what the host needs is taken from it, too.
    """

    total_gib: float | None = Field(default=None, gt=0, description="as sold; None: any machine")
    usable_gib: float | None = Field(default=None, gt=0, description="what an engine can have")
    unified: bool = False


class Limits(_Section):
    """What a builder may use and needs.

    The factors are peak memory of a build per byte of the language model's weights, on the host and on the
    device; a unified memory takes both.
    """

    workspace_gib: float = Field(ge=0, description="scratch memory a builder and its engine may use, GiB")
    max_num_tokens: int = Field(ge=1, description="tokens of one pass, over all requests")
    max_batch: int = Field(ge=1, description="requests that an engine answers together")
    build_host_factor: float = Field(ge=0)
    build_device_factor: float = Field(ge=0)


class Tolerances(_Section):
    """What a part may differ from PyTorch in FP32 by the device's arithmetic alone."""

    vision_cosine: float = Field(ge=-1, le=1, description="least cosine of visual tokens, 16-bit engine")
    logits_error: float = Field(gt=0, description="most relative error (norm) of logits, 16-bit engine")


class Efficiency(_Section):
    """Shares of the roofline that engines are expected to reach, 0 to 1.

    `decode` of the memory bandwidth; `prefill` and `vision` of the dense rate of the precision.
    """

    decode: float = Field(gt=0, le=1)
    prefill: float = Field(gt=0, le=1)
    vision: float = Field(gt=0, le=1)


class Target(_Section):
    """One device, or one family of devices that runs the same engine.

    `tflops` are dense rates (no sparsity) in 10^12 operations a second by precision; INT8 in TOPS.
    `precisions` are by backend what its engines multiply with. `sources` says for every number, or for the
    section that holds it, where it is from; a file without one is refused.
    """

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    architecture: Literal["x86_64", "aarch64"]
    backends: list[Backend] = Field(min_length=1, description="makers of engines for it")
    backend: Backend = Field(description="the one that is used; --set backend=NAME")
    sm: int | None = Field(default=None, description="CUDA compute capability of its GPU, 87 for 8.7")
    memory: Memory
    bandwidth_gb_s: float | None = Field(default=None, gt=0, description="10^9 bytes a second")
    tflops: dict[Precision, float] = {}
    precisions: dict[Backend, list[Precision]]
    versions: dict[Component, str] = {}
    onnx_opset: dict[Backend, int] = {}
    limits: Limits
    tolerances: Tolerances
    efficiency: Efficiency
    compute: Literal["fp16", "bf16"] = Field(default="fp16", description="16 bits that engines compute in")
    decoder_profiles: Literal[1, 2] = Field(
        default=1, description="of TensorRT plans: 2 has prefill and decode apart, and weights twice"
    )
    max_context: int = Field(ge=1, description="ceiling for prompt and answer together, tokens")
    sources: dict[str, str]

    @field_validator("backend")
    @classmethod
    def _is_offered(cls, backend: str, info: ValidationInfo) -> str:
        offered = info.data.get("backends", [backend])
        if backend not in offered:
            raise ValueError(f"engines for {info.data.get('name')} are made by {' or '.join(offered)}")
        return backend

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Target:
        unknown = [key for key in self.sources if key.split(".")[0] not in type(self).model_fields]
        if unknown:
            raise ValueError(f"sources names {unknown[0]}, which is no key of a target")
        facts = self.model_dump(exclude=_NO_FACTS)
        bare = next((path for path in _leaves(facts) if not _covered(path, self.sources)), None)
        if bare is not None:
            raise ValueError(f"{bare} has no source: add sources.{bare.split('.')[0]}")
        missing = [backend for backend in self.backends if backend not in self.precisions]
        if missing:
            raise ValueError(f"precisions has no entry for the backend {missing[0]}")
        return self

    @property
    def gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.sm is not None

    @property
    def usable_bytes(self) -> int | None:
        """Bytes that an engine can have on one device; None where the target is any machine."""
        return None if self.memory.usable_gib is None else int(self.memory.usable_gib * GIB)

    def supports(self, precision: str, backend: Backend | None = None) -> bool:
        """Whether engines of `backend` (the chosen one) multiply with `precision` here."""
        return precision in self.precisions.get(backend or self.backend, [])

    def notes(self) -> tuple[str, ...]:
        """What a user should know before building for this target on this machine."""
        machine = host_architecture()
        if machine == self.architecture:
            return ()
        # An ONNX graph is portable, so this is no error: the engine is only built here.
        return (
            f"this machine is {machine} and the target is {self.architecture}: "
            "the engine can be built here, and its speed has to be measured there",
        )


def load_target(name_or_path: str, overrides: Sequence[str] = ()) -> Target:
    """Read a target after setting `key.path=value` overrides, whose source becomes the user.

    Raises:
        UsageError, NvlmError: as `load_yaml_model`.
    """
    target = load_yaml_model("target", name_or_path, Target, overrides)
    paths = (".".join(Override.parse(text).path) for text in overrides)
    said = {path: _SET_BY_USER for path in paths if path.split(".")[0] not in _NO_FACTS}
    return target.model_copy(update={"sources": {**target.sources, **said}}) if said else target


def split_target_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the target, without their prefix, and all others; `backend=` is the target's."""
    of_target, others = [], []
    for text in overrides:
        if text.startswith((TARGET_PREFIX, _BACKEND_OVERRIDE)):
            of_target.append(text.removeprefix(TARGET_PREFIX))
        else:
            others.append(text)
    return of_target, others


def capability(sm: int) -> str:
    """Return a compute capability as people write it: `8.9` for 89, `10.0` for 100."""
    return f"{sm // 10}.{sm % 10}"


def _leaves(facts: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Paths of the values below `facts` that say something: no null and no empty section."""
    for key, value in facts.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, path + ".")
        elif value is not None and value is not False:
            yield path


def _covered(path: str, sources: Mapping[str, str]) -> bool:
    return any(path == key or path.startswith(key + ".") for key in sources if sources[key].strip())
