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
from nvlm_deploy.checkpoint.reader import CheckpointReader
from nvlm_deploy.checkpoint.rules import Rule
from nvlm_deploy.checkpoint.shards import ShardSet
from nvlm_deploy.checkpoint.weight_table import expected_tensors, model_table
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, did_you_mean
from nvlm_deploy.quantization.formats import PackedWeight
from nvlm_deploy.quantization.layout import per_column, per_group, storage_codec
from nvlm_deploy.quantization.plan import Storage
from nvlm_deploy.quantization.unified import QUANT_CONFIG_NAME, QuantConfig

_SUFFIXES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "k_scale", "v_scale")


class QuantizedReader(CheckpointReader):
    """Tensors of a quantized checkpoint; every matrix has just the tensors that its format needs.

    Raises:
        NvlmError: names the file or tensor that is missing, unknown or of another format.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = NvlmConfig.from_directory(directory)
        self._shards = ShardSet(directory)
        quant_config = QuantConfig.read(directory)
        if quant_config is None:
            raise NvlmError(f"{directory} is no quantized checkpoint: it has no {QUANT_CONFIG_NAME}")
        self.quant_config = quant_config
        table = model_table(self.config)
        infos = self._shards.infos
        table.check_sources([name for name in infos if not name.endswith(_SUFFIXES)], where=str(directory))
        self._infos = {name: infos[name] for name in table.sources}
        self.storages = self._read_storages(expected_tensors(self.config))
        for name in infos:
            self._check_companion(name)

    def has(self, name: str) -> bool:
        """Whether a tensor of this name is on disk."""
        return name in self._shards.infos

    def read_companion(self, name: str) -> Tensor:
        """Read a tensor that stands beside a weight."""
        return self._shards.read(name)

    def _read_storages(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Storage]:
        """Storage of every quantized matrix, by its released name."""
        storages = {}
        for name, info in self._infos.items():
            module = name.removesuffix(".weight")
            packed = self.has(f"{module}.weight_scale")
            storage = self.quant_config.storage(module) if packed else None
            if packed and storage is None:
                raise NvlmError(f"{self.directory}: {module} has scales, but {QUANT_CONFIG_NAME} excludes it")
            if storage is not None:
                storages[name] = self._refined(module, storage)
            elif tuple(info.shape) != shapes[name]:
                raise NvlmError(
                    f"{self.directory / info.shard}: {name} has the shape {list(info.shape)}, but "
                    f"config.json gives {list(shapes[name])}"
                )
        return storages

    def _refined(self, module: str, storage: Storage) -> Storage:
        """Formats whose activations are static have an input scale; without one they are weight-only."""
        static = storage.activations in ("fp8", "int8-static", "nvfp4")
        if static and not self.has(f"{module}.input_scale"):
            raise NvlmError(f"{self.directory}: the tensor {module}.input_scale is missing")
        return storage

    def _check_companion(self, name: str) -> None:
        module, _, suffix = name.rpartition(".")
        if suffix in ("k_scale", "v_scale") or suffix not in _SUFFIXES:
            return
        if f"{module}.weight" not in self.storages:
            raise NvlmError(
                f"{self.directory}: {name} belongs to no quantized matrix",
                hint=did_you_mean(f"{module}.weight", self.storages),
            )


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
        stem = f"language_model.model.layers.{layer}.self_attn."
        names = (f"{stem}k_proj.k_scale", f"{stem}v_proj.v_scale")
        if not self.quantized_reader.quant_config.fp8_kv_cache:
            return None
        keys, values = (self.quantized_reader.read_companion(name) for name in names)
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
