"""What a layout asks for: every tensor of the unified checkpoint and of the ranks, without memory.

Shapes: N output features, K input features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nvlm_deploy.config.recipe import STATIC_ACTIVATIONS
from nvlm_deploy.export.tensorrt_llm.matrices import singles_of
from nvlm_deploy.export.tensorrt_llm.schemes import Form
from nvlm_deploy.export.tensorrt_llm.table import EMBEDDING, LM_HEAD, NORM, Layout, stored_dtype
from nvlm_deploy.quantization.checkpoint import kv_scale_names
from nvlm_deploy.quantization.layout import storage_codec


def expected_tensors(layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all tensors of all ranks by the names of the table, on the meta device.

    `dtype` is the model's.
    """
    sources = dict(_sources(layout))
    return {
        target: tensor.to(stored_dtype(target, tensor.dtype, dtype))
        for target, tensor in layout.table().convert(sources.__getitem__)
    }


def _sources(layout: Layout) -> Iterator[tuple[str, Tensor]]:
    language = layout.language
    vocabulary = (language.vocab_size, language.hidden_size)
    yield EMBEDDING, _empty(torch.float32, vocabulary)
    yield LM_HEAD, _empty(torch.float32, vocabulary)
    yield NORM, _empty(torch.float32, (language.hidden_size,))
    for layer, forms in enumerate(layout.forms):
        stem = f"language_model.model.layers.{layer}."
        for single in singles_of(layout.cross, layer, language.hidden_size):
            yield f"{stem}{single.source}", _empty(torch.float32, (single.size,))
        for fused in layout.matrices(layer):
            outs, inp = layout.sizes(fused)
            for source, out in zip(fused.sources, outs, strict=True):
                for suffix, tensor in _matrix(forms[fused.name], out, inp):
                    yield f"{stem}{source}.{suffix}", tensor
                if layout.has_bias(fused):
                    yield f"{stem}{source}.bias", _empty(torch.float32, (out,))
        for name in kv_scale_names(layer) if layout.fp8_cache else ():
            yield name, _empty(torch.float32, ())


def _matrix(form: Form, rows: int, columns: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a matrix [N, K] by suffix."""
    if form.scheme.algorithm is None:
        yield "weight", _empty(torch.float32, (rows, columns))
        return
    for suffix, (dtype, shape) in storage_codec(form.storage).layout(rows, columns).items():
        yield suffix, _empty(dtype, shape)
    if form.storage.activations in STATIC_ACTIVATIONS:
        yield "input_scale", _empty(torch.float32, ())
    if form.prequant == "source":
        yield "pre_quant_scale", _empty(torch.float32, (columns,))


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
