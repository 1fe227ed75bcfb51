"""Targets: the devices that engines are built for (`engines/targets/*.yaml`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nvlm_deploy.config.machine import host_architecture


class Target(BaseModel):
    """One device, or one family of devices that runs the same engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    backend: Literal["onnxruntime", "tensorrt-llm"]
    architecture: Literal["x86_64", "aarch64"]
    sm: int | None = Field(default=None, description="CUDA compute capability of its GPU, 87 for 8.7")
    max_context: int = Field(ge=1, description="ceiling for prompt and answer together, tokens")

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


def capability(sm: int) -> str:
    """Return a compute capability as people write it: `8.9` for 89, `10.0` for 100."""
    return f"{sm // 10}.{sm % 10}"
