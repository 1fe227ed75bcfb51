"""Quantized checkpoints read back: unified HF layout, released names, the parameters of the model.

Shapes: N output features, K input features, J scales per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nvlm_deploy.checkpoint.model_weights import ModelWeights
from nvlm_deploy.checkpoint.reader import CheckpointReader, check_variant
from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.checkpoint.safetensors_file import DTYPE_NAMES, RELEASED_DTYPES, TensorInfo
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS
from nvlm_deploy.errors import NvlmError, did_you_mean
from nvlm_deploy.quantization.formats import PackedWeight
from nvlm_deploy.quantization.layout import per_column, per_group, storage_codec
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, QuantConfig

_KV_SUFFIXES = ("k_scale", "v_scale")
_SUFFIXES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", *_KV_SUFFIXES)


class QuantizedReader(CheckpointReader):
    """Tensors of a quantized checkpoint; every matrix has just the tensors that its format needs.

    Raises:
        NvlmError: names the file or tensor that is missing, unknown or of another format.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = NvlmConfig.from_directory(directory)
        self.shards = ShardSet(directory)
        quant_config = QuantConfig.read(directory)
        if quant_config is None:
            raise NvlmError(f"{directory} is no quantized checkpoint: it has no {QUANT_CONFIG_NAME}")
        self.quant_config = quant_config
        table = model_table(self.config)
        infos = self.shards.infos
        check_variant(directory, self.config, infos)
        table.check_sources([name for name in infos if not name.endswith(_SUFFIXES)], where=str(directory))
        self._infos = {name: infos[name] for name in table.sources}
        self.storages = self._read_storages(expected_tensors(self.config))
        for name in infos:
            self._check_companion(name)
        self._check_kv_scales()

    def has(self, name: str) -> bool:
        """Whether a tensor of this name is on disk."""
        return name in self.shards.infos

    def read_companion(self, name: str) -> Tensor:
        """Read a tensor that stands beside a weight."""
        return self.shards.read(name)

    def _read_storages(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Storage]:
        """Storage of every quantized matrix, by its released name."""
        storages = {}
        for name, info in self._infos.items():
            module = name.removesuffix(".weight")
            storage = self.quant_config.storage(module) if _is_matrix(info, shapes[name]) else None
            if storage is not None:
                self._check_packed(module, storage, shapes[name])
                storages[name] = storage
            else:
                self._check_float(info, shapes[name])
        return storages

    def _check_packed(self, module: str, storage: Storage, shape: tuple[int, ...]) -> None:
        """Check the tensors of a quantized matrix, whose shape in floats is given."""
        rows, columns = shape
        layout = storage_codec(storage).layout(rows, columns)
        if storage.activations in STATIC_ACTIVATIONS:
            layout["input_scale"] = (torch.float32, ())
        if self.has(f"{module}.pre_quant_scale"):
            layout["pre_quant_scale"] = (torch.bfloat16, (columns,))
        for suffix, (dtype, expected) in layout.items():
            name = f"{module}.{suffix}"
            if not self.has(name):
                raise NvlmError(
                    f"{self.directory}: the tensor {name} is missing",
                    hint=f"{QUANT_CONFIG_NAME} says that {module} is quantized",
                )
            info = self.shards.infos[name]
            floats = RELEASED_DTYPES if suffix == "pre_quant_scale" else (dtype,)
            if info.dtype not in floats or tuple(info.shape) != expected:
                raise NvlmError(
                    f"{self.directory / info.shard}: {name} is {DTYPE_NAMES[info.dtype]} {list(info.shape)}, "
                    f"but its format has {DTYPE_NAMES[dtype]} {list(expected)}"
                )

    def _check_float(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if info.dtype not in RELEASED_DTYPES:
            raise NvlmError(
                f"{self.directory / info.shard}: {info.name} has the dtype {DTYPE_NAMES[info.dtype]!r}, but "
                f"{QUANT_CONFIG_NAME} excludes it from quantization"
            )
        if tuple(info.shape) != shape:
            raise NvlmError(
                f"{self.directory / info.shard}: {info.name} has the shape {list(info.shape)}, but "
                f"config.json gives {list(shape)}"
            )

    def _check_companion(self, name: str) -> None:
        module, _, suffix = name.rpartition(".")
        if suffix in _KV_SUFFIXES or suffix not in _SUFFIXES:
            return
        if f"{module}.weight" not in self.storages:
            raise NvlmError(
                f"{self.directory}: {name} belongs to no quantized matrix",
                hint=did_you_mean(f"{module}.weight", self.storages),
            )

    def _check_kv_scales(self) -> None:
        for layer in range(self.config.language.num_layers if self.quant_config.fp8_kv_cache else 0):
            for name in kv_scale_names(layer):
                if not self.has(name):
                    raise NvlmError(
                        f"{self.directory}: the tensor {name} is missing",
                        hint=f"{QUANT_CONFIG_NAME} says that the cache is FP8",
                    )


def kv_scale_names(layer: int) -> tuple[str, str]:
    """Names of the scales of a decoder layer's keys and values in an FP8 cache."""
    stem = f"language_model.model.layers.{layer}.self_attn."
    return f"{stem}k_proj.k_scale", f"{stem}v_proj.v_scale"


def _is_matrix(info: TensorInfo, shape: tuple[int, ...]) -> bool:
    # The embedding is looked up and not multiplied with; no unified checkpoint quantizes it.
    return len(shape) == 2 and info.name.endswith(".weight") and "embed" not in info.name


class QuantizedWeights(ModelWeights):
    """Parameters of a quantized checkpoint; matrices as their codes, or as what the codes stand for."""

    def __init__(self, reader: QuantizedReader) -> None:
        super().__init__(reader)
        self.quantized_reader = reader
        self._rules: dict[str, tuple[Rule, int]] = {}
        for rule in model_table(reader.config).rules:
            if rule.sources[0] in reader.storages:
                for position, target in enumerate(rule.targets):
                    self._rules[target] = (rule, position)

    @cached_property
    def storages(self) -> dict[str, Storage]:
        """Storage of every quantized matrix, by the model's names."""
        return {
            name: self.quantized_reader.storages[rule.sources[0]] for name, (rule, _) in self._rules.items()
        }

    def read_rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Read rows of a parameter; of a quantized matrix, the numbers that its codes stand for."""
        if name not in self._rules:
            return super().read_rows(name, start, stop, dtype)
        rule, position = self._rules[name]
        packed = self._packed(rule)
        values_NK = rule.apply([storage_codec(self.storages[name]).unpack(packed)])[position]
        return values_NK[start:stop].contiguous().to(dtype or torch.float32)

    def codes(self, name: str) -> tuple[Tensor, Tensor]:
        """Codes [N, K], int8 or float8_e4m3fn, and scales float32 [N, J] whose products are the weights."""
        rule, position = self._rules[name]
        codec = storage_codec(self.storages[name])
        codes_NK, scale_NJ = codec.factors(self._packed(rule))
        columns = codes_NK.shape[1]
        group_size = columns // scale_NJ.shape[1] if scale_NJ.shape[1] > 1 else 0
        scale_NJ = per_group(rule, group_size).apply([scale_NJ])[position].contiguous()
        return rule.apply([codes_NK])[position].contiguous(), scale_NJ

    def input_scale(self, name: str) -> Tensor | None:
        """Scale of static activations, float32 ()."""
        return self._companion(name, "input_scale")

    def pre_quant_scale(self, name: str) -> Tensor | None:
        """What the inputs of a matrix are multiplied with, float32 [K]; None for nothing."""
        stored = self._companion(name, "pre_quant_scale")
        if stored is None:
            return None
        rule, _ = self._rules[name]
        return per_column(rule).apply([stored.float().unsqueeze(0)])[0].squeeze(0)

    def kv_scale(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Scales of a layer's keys and values, float32 (); None if the cache is not FP8."""
        if not self.quantized_reader.quant_config.fp8_kv_cache:
            return None
        keys, values = (self.quantized_reader.read_companion(name) for name in kv_scale_names(layer))
        return keys, values

    def verify_dummy_heads(self) -> None:
        """Nothing to do: they were verified before their weights were packed."""

    def _packed(self, rule: Rule) -> PackedWeight:
        (name,) = rule.sources
        module, reader = name.removesuffix("weight"), self.quantized_reader
        packed = PackedWeight(reader.read(name), reader.read_companion(f"{module}weight_scale"))
        if reader.has(f"{module}weight_scale_2"):
            packed = replace(packed, weight_scale_2=reader.read_companion(f"{module}weight_scale_2"))
        return packed

    def _companion(self, name: str, suffix: str) -> Tensor | None:
        rule, _ = self._rules[name]
        companion = rule.sources[0].removesuffix("weight") + suffix
        reader = self.quantized_reader
        return reader.read_companion(companion) if reader.has(companion) else None


def open_weights(directory: Path) -> ModelWeights:
    """Open a checkpoint, quantized or as released.

    Raises:
        NvlmError: it is neither, or not in order.
    """
    if (directory / QUANT_CONFIG_NAME).exists():
        return QuantizedWeights(QuantizedReader(directory))
    return ModelWeights(CheckpointReader(directory))
