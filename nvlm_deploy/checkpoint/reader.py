"""A checkpoint in the released layout, checked as a whole and read tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from nvlm_deploy.checkpoint.rules import Shape
from nvlm_deploy.checkpoint.safetensors_file import DTYPE_NAMES, RELEASED_DTYPES, TensorInfo
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, did_you_mean


class CheckpointReader:
    """Tensors of a checkpoint directory by their released names.

    Every tensor of the weight table must be there with its shape and nothing else, so a reader that
    opened is a complete checkpoint. See `ShardSet` for how it reads.

    Raises:
        NvlmError: names the file or tensor that is missing, truncated, unknown or misshapen.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = NvlmConfig.from_directory(directory)
        self.shards = ShardSet(directory)
        table = model_table(self.config)
        check_variant(directory, self.config, self.shards.infos)
        _check_dtypes(directory, self.shards.infos)
        table.check_sources(self.shards.infos, where=str(directory))
        self._infos = {name: self.shards.infos[name] for name in table.sources}
        _check_shapes(directory, self._infos, expected_tensors(self.config))

    def names(self) -> tuple[str, ...]:
        """Released names in the canonical order of the weight table."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place on disk of one tensor."""
        if name not in self._infos:
            raise NvlmError(f"{self.directory} has no tensor {name}", hint=did_you_mean(name, self._infos))
        return self._infos[name]

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read one tensor, contiguous, in the dtype on disk or cast to `dtype`."""
        return self.shards.read(self.info(name).name, dtype)

    def read_rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read rows `[start, stop)` of dimension 0 and nothing else of the tensor."""
        info = self.info(name)
        row = info.num_elements // info.shape[0]
        return self.read_elements(name, start * row, stop * row, dtype).view(stop - start, *info.shape[1:])

    def read_elements(
        self, name: str, start: int, stop: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Read the elements `[start, stop)` of the flattened tensor, 1-D."""
        return self.shards.read_elements(self.info(name).name, start, stop, dtype)

    def fingerprint(self) -> str:
        """See `ShardSet.fingerprint`."""
        return self.shards.fingerprint()


def check_variant(directory: Path, config: NvlmConfig, infos: Mapping[str, TensorInfo]) -> None:
    """Tell NVLM-D from its siblings by what is there, before single tensors are called unknown or missing."""
    there = any(".cross_attn" in name for name in infos)
    if there and config.cross_attention is None:
        raise NvlmError(
            f"{directory} has tensors of cross-attention, but its config.json says NVLM-{config.variant}",
            hint="NVLM-X and NVLM-H have a section cross_attention_config, see docs/checkpoint-format.md",
        )
    if config.cross_attention is not None and not there:
        raise NvlmError(
            f"{directory} has no tensor of cross-attention, but its config.json says NVLM-{config.variant}: "
            "these are the weights of an NVLM-D",
            hint=f"nvlm-build convert --variant {config.variant} starts an NVLM-{config.variant} from parts",
        )


def _check_dtypes(directory: Path, infos: dict[str, TensorInfo]) -> None:
    for info in infos.values():
        if info.dtype not in RELEASED_DTYPES:
            raise NvlmError(
                f"{directory / info.shard}: {info.name} has the dtype {DTYPE_NAMES[info.dtype]!r}; "
                f"supported: {', '.join(DTYPE_NAMES[dtype] for dtype in RELEASED_DTYPES)}",
                hint="a quantized checkpoint needs its hf_quant_config.json; everything else starts from the "
                "released BF16/FP32 one",
            )


def _check_shapes(directory: Path, infos: dict[str, TensorInfo], expected: dict[str, Shape]) -> None:
    for name, shape in expected.items():
        if infos[name].shape != shape:
            raise NvlmError(
                f"{directory / infos[name].shard}: {name} has the shape {list(infos[name].shape)}, "
                f"but config.json gives {list(shape)}",
                hint="config.json belongs to another model, or the tensor was written wrongly",
            )
