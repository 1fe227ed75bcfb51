"""Weights stream into the data file, which holds what the plan says and nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from nvlm_deploy.checkpoint import ModelWeights
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.export import build_decoder, write_model
from nvlm_deploy.export.dialect import Dialect
from nvlm_deploy.export.graph import GraphBuilder
from nvlm_deploy.export.initializers import add_initializer
from nvlm_deploy.export.matrices import Matrix, stacked
from nvlm_deploy.export.weights import StreamedTensor, WeightSource, code_layout, float_layout, scale_layout
from nvlm_deploy.quantization import Storage, dequantize, quantize

from .conftest import MakePlan

NAME = "language.layers.0.mlp.down_proj.weight"


def graph_with(weights: ModelWeights, plan: object, *tensors: StreamedTensor) -> ir.Model:
    builder = GraphBuilder("test", WeightSource(weights, plan), Dialect(24))  # type: ignore[arg-type]
    for index, tensor in enumerate(tensors):
        add_initializer(builder.graph, f"tensor.{index}", tensor)
    return builder.model({})


def test_one_piece_is_in_memory_at_a_time(tmp_path: Path, weights: ModelWeights, make_plan: MakePlan) -> None:
    import tracemalloc

    piece = 1 << 20
    chunks = lambda: (np.full(piece, i, np.uint8) for i in range(16))  # noqa: E731
    tensor = StreamedTensor(ir.DataType.UINT8, (16 * piece,), chunks, "big")
    model = graph_with(weights, make_plan(format="fp32"), tensor)
    tracemalloc.start()
    write_model(model, tmp_path / "m.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "m.onnx.data").stat().st_size == 16 * piece
    assert peak < 4 * piece


def test_equal_keys_are_written_once(tmp_path: Path, weights: ModelWeights, make_plan: MakePlan) -> None:
    plan = make_plan(format="fp32")
    matrix = Matrix(weights, (NAME,), Storage("fp32"))
    tensors = [float_layout(matrix, transposed=False) for _ in range(2)]
    model = graph_with(weights, plan, *tensors)
    write_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size == matrix.rows * matrix.columns * 4
    read = ir.load(tmp_path / "m.onnx").graph.initializers
    expected = weights.read(NAME).float().numpy()
    for name in ("tensor.0", "tensor.1"):
        value = read[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), expected)


def test_large_tensors_begin_on_a_page(tmp_path: Path, weights: ModelWeights, make_plan: MakePlan) -> None:
    form = {"format": "int4", "group_size": 32}
    model = build_decoder(weights.reader.config.language, weights, make_plan(**form), 64)
    write_model(model, tmp_path / "m.onnx")
    tensors = [value.const_value for value in model.graph.initializers.values()]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    assert external
    for tensor in external:
        assert (tensor.offset or 0) % (4096 if tensor.nbytes >= 4096 else 64) == 0
    assert all(t.nbytes < 1024 for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))


def test_progress_ends_at_the_size_of_the_file(
    tmp_path: Path, weights: ModelWeights, make_plan: MakePlan
) -> None:
    model = build_decoder(weights.reader.config.language, weights, make_plan(format="fp16"), 64)
    calls: list[tuple[str, int, int]] = []
    write_model(model, tmp_path / "m.onnx", lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] == (tmp_path / "m.onnx.data").stat().st_size


def test_codes_and_scales_are_those_of_the_quantizer(weights: ModelWeights) -> None:
    matrix = Matrix(weights, (NAME,), Storage("int4", 32))
    exact = quantize(weights.read(NAME).float().numpy(), bits=4, group_size=32, symmetric=True)
    codes_KN = code_layout(matrix, transposed=True).numpy().astype(np.float32)
    scales_JN = scale_layout(matrix, transposed=True).numpy().astype(np.float32)
    values = (codes_KN * np.repeat(scales_JN, 32, axis=0)).T
    assert np.array_equal(values, dequantize(exact, matrix.columns))


def test_matrices_stack_only_if_they_are_stored_alike(weights: ModelWeights) -> None:
    names = [f"language.layers.0.attention.{kind}_proj.weight" for kind in "qkv"]
    alike = stacked([Matrix(weights, (name,), Storage("int4", 32)) for name in names])
    assert alike is not None
    rows = np.concatenate([weights.read(name).float().numpy() for name in names])
    assert np.array_equal(np.concatenate(list(alike.float_chunks())), rows)
    forms = (Storage("int4", 32), Storage("int4", 64), Storage("int4", 32))
    assert stacked([Matrix(weights, (n,), s) for n, s in zip(names, forms, strict=True)]) is None


class HugeWeights:
    """One matrix with a weight beyond FP16."""

    def names(self) -> tuple[str, ...]:
        return ("huge.weight",)

    def shape(self, name: str) -> tuple[int, ...]:
        return (2, 4)

    def read(self, name: str, dtype: object = None) -> object:
        return self.read_rows(name, 0, 2)

    def read_rows(self, name: str, start: int, stop: int, dtype: object = None) -> object:
        import torch

        return torch.full((stop - start, 4), 1e6)


def test_a_weight_beyond_fp16_is_named() -> None:
    matrix = Matrix(HugeWeights(), ("huge.weight",), Storage("fp16"))  # type: ignore[arg-type]
    with pytest.raises(NvlmError, match=r"huge\.weight holds values that are too large"):
        float_layout(matrix, transposed=False).tobytes()
