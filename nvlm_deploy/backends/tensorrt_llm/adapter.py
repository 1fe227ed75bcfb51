"""The only module that imports tensorrt_llm. Nothing is imported before it is needed.

TensorRT-LLM pins its own transformers and torch, so it lives in an environment of its own.
"""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.tensorrt_llm.build_config import BuildArguments, check_names
from nvlm_deploy.backends.tensorrt_llm.interface import Interface, interface_of
from nvlm_deploy.config.strict_json import read_json_object
from nvlm_deploy.errors import UnsuitableError

_DISTRIBUTION = "tensorrt-llm"
# Of checkpoints with cross-attention.
CROSS_ARCHITECTURE = "NvlmMllamaForCausalLM"


def installed_version() -> str | None:
    """Version of the installed TensorRT-LLM, without importing it; None if there is none."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def require_interface() -> Interface:
    """Return the interface of the installed TensorRT-LLM.

    Raises:
        UnsuitableError: it is not installed, or its release is not supported.
    """
    version = installed_version()
    if version is None:
        raise UnsuitableError(
            "TensorRT-LLM is not installed here",
            hint="run in the container of the target's page in docs/targets/, or install tensorrt-llm==1.2.1 "
            "(JetPack 6: 0.12-jetson) in an environment of its own",
        )
    return interface_of(version)


def build_rank(checkpoint: Path, rank: int, arguments: BuildArguments, output: Path) -> None:
    """Build and save the engine of one rank: `rank{rank}.engine`, and `config.json` by rank 0.

    A model can be built once, so this is one process per rank.
    """
    from tensorrt_llm.builder import BuildConfig, build
    from tensorrt_llm.plugin.plugin import PluginConfig

    plugin = PluginConfig()
    check_names("BuildConfig", arguments.build, _fields(BuildConfig), str(installed_version()))
    for name, value in arguments.plugin.items():
        check_names("PluginConfig", {name: value}, frozenset(dir(plugin)), str(installed_version()))
        setattr(plugin, name, value)
    model = _model_class(checkpoint).from_checkpoint(str(checkpoint), rank=rank)
    engine = build(model, BuildConfig(**arguments.build, plugin_config=plugin))
    output.mkdir(parents=True, exist_ok=True)
    engine.save(str(output))


def _model_class(checkpoint: Path) -> Any:
    """The class of a checkpoint's architecture; ours for cross-attention is known once it is imported."""
    architecture = read_json_object(checkpoint / "config.json").get("architecture")
    if architecture == CROSS_ARCHITECTURE:
        from nvlm_deploy.backends.tensorrt_llm.nvlm_mllama import NvlmMllamaForCausalLM

        return NvlmMllamaForCausalLM
    from tensorrt_llm.models import QWenForCausalLM

    return QWenForCausalLM


def executor_api() -> Any:
    """Return the module with `Executor`, `Request` and their settings; TensorRT-LLM's plugins are loaded."""
    import tensorrt_llm  # noqa: F401  (loads the plugins that engines need)
    from tensorrt_llm.bindings import executor

    return executor


def mpi_rank() -> int:
    """Number of this process among those that mpirun has started; 0 without mpirun."""
    import tensorrt_llm

    return int(tensorrt_llm.mpi_rank())


def _fields(owner: Any) -> frozenset[str]:
    """Names that a settings class takes: a dataclass in older releases, a pydantic model in newer ones."""
    model = getattr(owner, "model_fields", None)
    return frozenset(model) if model else frozenset(field.name for field in dataclasses.fields(owner))
