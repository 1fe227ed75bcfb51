"""TensorRT-LLM checkpoints read back, all ranks of them, into the reference model.

Shapes: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from nvlm_deploy.checkpoint.safetensors_file import DTYPE_NAMES, TensorInfo, read_elements, read_header
from nvlm_deploy.config.strict_json import read_json_object
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export.tensorrt_llm.config import CONFIG_NAME, QUANT_CONFIG_NAME, read_layout
from nvlm_deploy.export.tensorrt_llm.shapes import expected_tensors
from nvlm_deploy.export.tensorrt_llm.table import on_rank
from nvlm_deploy.export.tensorrt_llm.writer import DTYPES, rank_file
from nvlm_deploy.models.decoder import LanguageDecoder
from nvlm_deploy.models.quantized import install_quantizers
from nvlm_deploy.quantization.checkpoint import kv_scale_names
from nvlm_deploy.quantization.formats import PackedWeight
from nvlm_deploy.quantization.layout import storage_codec
from nvlm_deploy.quantization.plan import Storage

RECORD_NAME = "export.json"
_RENAMED = {
    "language_model.model.": "language.",
    "language_model.": "language.",
    ".self_attn.": ".attention.",
    ".input_layernorm.": ".input_norm.",
    ".post_attention_layernorm.": ".post_attention_norm.",
    ".cross_attn_layernorm.": ".cross.norm.",
    ".cross_attn_kv_layernorm.": ".cross.kv_norm.",
    ".cross_attn.": ".cross.attention.",
    ".cross_attn_gate": ".cross.gate",
    ".cross_attn_mlp_layernorm.": ".cross.mlp_norm.",
    ".cross_attn_mlp.": ".cross.mlp.",
    ".cross_attn_mlp_gate": ".cross.mlp_gate",
}


class TensorRtLlmReader:
    """A checkpoint of all ranks, whose files hold just the tensors that its configs ask for.

    Raises:
        NvlmError: names the file, key or tensor that is missing, unknown or misshapen.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        config = read_json_object(directory / CONFIG_NAME)
        record = read_json_object(directory / RECORD_NAME)
        by_layer = directory / QUANT_CONFIG_NAME
        formats = read_json_object(by_layer) if by_layer.exists() else None
        self.layout = read_layout(config, formats, record, str(directory))
        self._infos: dict[str, TensorInfo] = {}
        for rank in range(self.layout.parallel.world_size):
            header = read_header(directory / rank_file(rank))
            self._infos.update({on_rank(rank, name): info for name, info in header.tensors.items()})
        self._table = self.layout.table().inverse()
        self._table.check_sources(self._infos, str(directory))
        self._check_tensors(DTYPES[config["dtype"]])

    def _check_tensors(self, dtype: torch.dtype) -> None:
        for target, tensor in expected_tensors(self.layout, dtype).items():
            info = self._infos[target]
            if (info.dtype, info.shape) != (tensor.dtype, tuple(tensor.shape)):
                raise NvlmError(
                    f"{self.directory}: {target} is {DTYPE_NAMES[info.dtype]} {list(info.shape)}, but the "
                    f"configs ask for {DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}"
                )

    def read(self, target: str) -> Tensor:
        """Read one rank's tensor by its name of the table."""
        info = self._infos[target]
        flat = read_elements(self.directory / info.shard, info, 0, info.num_elements)
        return flat.view(info.shape)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the unified checkpoint, without padding, under their released names.

        A scale of inputs that are not scaled is there as ones; an FP8 cache has one scale for both.

        Raises:
            NvlmError: copies on several ranks differ.
        """
        return self._table.convert(self.read)


class TensorRtLlmWeights:
    """The parameters of the decoder and the quantizers beside them, by the names of `nvlm_deploy.models`."""

    def __init__(self, reader: TensorRtLlmReader) -> None:
        self.layout = reader.layout
        self.tensors = {_model_name(name): tensor for name, tensor in reader.tensors()}
        self.storages: dict[str, Storage] = {}
        for layer, forms in enumerate(self.layout.forms):
            for fused in self.layout.matrices(layer):
                if forms[fused.name].scheme.algorithm is None:
                    continue
                for source in fused.sources:
                    name = _model_name(f"language_model.model.layers.{layer}.{source}.weight")
                    self.storages[name] = forms[fused.name].storage

    def read(self, name: str) -> Tensor:
        """One parameter in FP32; of a quantized matrix [N, K], the numbers that its codes stand for."""
        tensor = self.tensors[name]
        if name not in self.storages:
            return tensor.float()
        stem = name.removesuffix("weight")
        scale_2 = self.tensors.get(f"{stem}weight_scale_2")
        packed = PackedWeight(tensor, self.tensors[f"{stem}weight_scale"], scale_2)
        return storage_codec(self.storages[name]).unpack(packed)

    def input_scale(self, name: str) -> Tensor | None:
        """Scale of static activations, float32 ()."""
        return self.tensors.get(name.removesuffix("weight") + "input_scale")

    def pre_quant_scale(self, name: str) -> Tensor | None:
        """What the inputs of a matrix are multiplied with, float32 [K]."""
        scale_K = self.tensors.get(name.removesuffix("weight") + "pre_quant_scale")
        return None if scale_K is None else scale_K.float()

    def kv_scale(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Scales of a layer's keys and values, float32 (); None if the cache is not FP8."""
        if not self.layout.fp8_cache:
            return None
        keys, values = (self.tensors[_model_name(name)] for name in kv_scale_names(layer))
        return keys, values


def load_tensorrt_llm_model(directory: Path) -> LanguageDecoder:
    """Load all ranks of a checkpoint as the reference decoder in evaluation mode, FP32.

    It computes with the numbers that are stored, as `load_quantized_model` does; kernels that widen codes to
    16 bits round what this does not.

    Raises:
        NvlmError: the checkpoint is not in order.
    """
    weights = TensorRtLlmWeights(TensorRtLlmReader(directory))
    with torch.device("meta"):
        decoder = LanguageDecoder(weights.layout.language, weights.layout.cross)
    # The names of parameters begin with the decoder's own.
    model = nn.Module()
    model.language = decoder
    model.load_state_dict({name: weights.read(name) for name in model.state_dict()}, strict=True, assign=True)
    install_quantizers(model, decoder, weights)
    return decoder.eval()


def _model_name(name: str) -> str:
    for released, model in _RENAMED.items():
        name = name.replace(released, model, 1)
    return name
